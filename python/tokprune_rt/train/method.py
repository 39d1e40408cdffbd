"""What a way of learning to prune brings to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokprune_rt.policy import Policy
from tokprune_rt.train.budget import Widths
from tokprune_rt.train.hard import protected_tokens
from tokprune_rt.train.leaving import FROM_FIRST, Leaving, Shown
from tokprune_rt.train.masked import Chooser, Pass


class Method(nn.Module, ABC):
    """The parameters that decide, beside the model's weights.

    ``warm_up`` is the share of the first stage in which the budget tightens.

    Args:
        name: of the method, in policies and messages.
        widths: of the model.
        protect: ids of tokens that never leave, beside the first.
        leaving: how tokens leave, which depends on the model's head.
    """

    warm_up: ClassVar[float] = 0.4

    def __init__(
        self,
        name: str,
        widths: Widths,
        protect: Sequence[int] = (),
        leaving: Leaving = FROM_FIRST,
    ) -> None:
        super().__init__()
        if widths.layers < 2:
            raise ValueError(f"{name} needs 2 layers or more, the model has {widths.layers}")
        self.name, self.widths, self.protect = name, widths, tuple(protect)
        self.leaving = leaving

    @abstractmethod
    def chooser(self) -> Chooser:
        """For one training step: the runtime's decisions, with gradients through them."""

    @abstractmethod
    def policy(self, factor: float = 1.0, **extra: Any) -> Policy:
        """What the runtime is to do; the larger ``factor``, the fewer tokens stay. ``extra`` are
        fields of the document."""

    def expected_macs(self, run: Pass) -> Tensor:
        """Multiply-adds of a training step's pass, of the dense model's, with gradients."""
        return self.macs(run.lengths, run.notes["left"])

    def macs(self, lengths: Tensor, left: Sequence[Tensor]) -> Tensor:
        """The same from the tokens that each layer left, see `Widths.share_of_dense`."""
        return self.widths.share_of_dense(lengths, left)

    def after_step(self, done: float) -> None:
        """Keep parameters where they mean something; ``done``: share of the stage."""

    def rule(self) -> dict[str, Any]:
        """Who never leaves, in the terms of a compiled plan."""
        return self.leaving.rule(self.protect)

    def document(self, **fields: Any) -> dict[str, Any]:
        """The parts that the policies of all methods share, and ``fields``."""
        document = {
            "format": "token-policy",
            "version": 1,
            "name": self.name,
            "layers": self.widths.layers,
            "protect": {"first": True, "token_ids": list(self.protect)},
            "limits": {"min_tokens": 2},
            **fields,
        }
        return self.leaving.document(document)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Exactly 0 or 1 as ``hard`` says, with the gradient of ``soft``."""
    # `hard + soft - soft` would not be exact.
    return soft + (hard.to(soft.dtype) - soft).detach()


class SoftChooser:
    """Takes the decisions of one training step as the runtime takes them, for one method.

    A head per token sees the last state of a token that left, as in a policy that restores.
    """

    def __init__(self, method: Method) -> None:
        self._method = method

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        if layer == 0:
            run.notes["protected"] = protected_tokens(self._method.rule(), run)

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        pass

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        weight = run.weight if run.weight is not None else run.alive.to(torch.float32)
        run.notes.setdefault("left", []).append(weight.sum(dim=1))
        if layer == self._method.widths.layers - 1 and "shown" in run.notes:
            hidden = run.notes["shown"].rows(hidden)
        return hidden

    def leave(self, run: Pass, stays: Tensor, candidates: Tensor) -> None:
        """Let those of ``candidates`` (bool [B, S]) leave for whom ``stays`` [B, S] is 0."""
        if run.weight is None:
            run.weight = run.alive.to(stays.dtype)
        # Those that are out already have weight 0; a factor of 1 lets their gradient through.
        run.weight = run.weight * torch.where(candidates, stays, 1.0)
        run.alive = run.alive & (run.weight.detach() > 0.5)

    def show(self, run: Pass, state: Tensor) -> None:
        """A head per token is to see ``state`` [B, S, d] of those that have just left."""
        if self._method.leaving.restores and run.weight is not None:
            shown = run.notes.setdefault("shown", Shown(run.real.to(run.weight.dtype)))
            shown.stays(run.weight, state)
