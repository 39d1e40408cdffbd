"""What a training stage is: its settings, its loss, and what learns in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokprune_rt import _core
from tokprune_rt.train.data import Encoded
from tokprune_rt.train.masked import MaskedEncoder, Pass

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Of every stage of a run.

    Attributes:
        batch_size: sequences of a step.
        seed: of the order of the examples and of dropout.
        weight_decay: of matrices; vectors have none.
        warm_up: share of a stage's steps in which the learning rate rises.
        clip: largest norm of the weights' gradient, and of the method's own.
        patience: epochs without a better dev score after which a stage ends; 0: never.
        save_seconds: time between checkpoints.
        bf16: compute the steps' products in bfloat16, whose states the steps' decisions are then
            taken from; weights and evaluations stay float32. None becomes whether the device is
            faster that way.
        device: of the training.
    """

    batch_size: int = 32
    seed: int = 0
    weight_decay: float = 0.01
    warm_up: float = 0.06
    clip: float = 1.0
    patience: int = 0
    save_seconds: float = 60.0
    bf16: bool | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.bf16 is None:
            object.__setattr__(self, "bf16", prefers_bf16(self.device))


def prefers_bf16(device: str) -> bool:
    """Whether products are faster in bfloat16 than in float32 there."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # The runtime's own default says whether a CPU's bfloat16 products are of use.
    return kind == "cpu" and _core.isa_levels()[-1] in ("avx512_bf16", "amx")


@dataclass
class Stage:
    """A number of epochs under one way of choosing tokens.

    Attributes:
        name: for messages and checkpoints.
        epochs: at most.
        rate: learning rate of the weights.
        chooser: what the encoder's `choosing` takes, made anew at every step, since it may depend
            on what is learned; None: dense. It finds the model and the modules of ``own`` in
            training mode or, for the dev score, not.
        loss: of logits, targets, the pass and the share of the stage that is done; None: the
            task's.
        own: parameters of the method with their learning rate.
        after_step: called with the share of the stage that is done.
        keep_best: end with the weights of the best dev score, not the last.
        encoder: of the same model, what the chooser is for; None: the training's own.
        whole: the loss compares a batch's sequences; otherwise a step may take them in parts, whose
            losses count by their sequences (a tagging's, a mean over tokens, is nearly the same).
        examples: what it learns from; None: the training's.
    """

    name: str
    epochs: int
    rate: float
    chooser: Callable[[], Any] = lambda: None
    loss: Callable[[Tensor, Tensor, Pass, float], Tensor] | None = None
    own: Mapping[str, tuple[nn.Module, float]] = field(default_factory=dict)
    after_step: Callable[[float], None] = lambda _: None
    keep_best: bool = True
    encoder: MaskedEncoder | None = None
    whole: bool = False
    examples: Encoded | None = None

    def set_training(self, model: nn.Module, mode: bool) -> None:
        for module in (model, *(own for own, _ in self.own.values())):
            module.train(mode)


def parameter_groups(model: nn.Module, stage: Stage, decay: float) -> list[dict[str, Any]]:
    """For the optimizer: matrices, which decay, vectors, and what the method learns."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "lr": stage.rate, "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "lr": stage.rate, "weight_decay": 0.0},
    ]
    for module, rate in stage.own.values():
        groups.append({"params": list(module.parameters()), "lr": rate, "weight_decay": 0.0})
    return groups
