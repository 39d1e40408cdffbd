"""Where a training stage is, and what it takes to go on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Seconds between two signs of life.
_SILENCE = 30.0


@dataclass
class Progress:
    """Where a stage is."""

    epoch: int = 0
    step: int = 0
    taken: int = 0
    best_score: float = float("-inf")
    best_epoch: int = 0
    best: dict[str, Any] | None = None
    losses: list[float] = field(default_factory=list)

    def mean_loss(self) -> float:
        """Of the last steps."""
        return float(np.mean(self.losses)) if self.losses else float("nan")


class Telling:
    """Says now and then how far a stage is, and how long the rest of it will take.

    Args:
        say: receives the lines.
        stage: its name.
        epochs, total: of the stage, ``total`` in steps.
        taken: steps that were taken before.
    """

    def __init__(
        self, say: Callable[[str], None], stage: str, epochs: int, total: int, taken: int
    ) -> None:
        self._say, self._stage, self._epochs, self._total = say, stage, epochs, total
        self._taken = taken
        self._began = self._said = time.monotonic()

    def step(self, state: Progress, steps: int) -> None:
        """After a step; ``steps`` of the epoch."""
        now = time.monotonic()
        if now - self._said < _SILENCE:
            return
        self._said = now
        each = (now - self._began) / max(1, state.taken - self._taken)
        self._say(
            f"{self._stage}, epoch {state.epoch + 1} of {self._epochs}: step {state.step} of "
            f"{steps}, loss {state.mean_loss():.4f}, about "
            f"{max(1, round(each * (self._total - state.taken) / 60))} min left in this stage"
        )


def random_state(device: torch.device) -> list[Tensor]:
    """Of every generator that dropout may draw from; a CPU's run asks nothing of an accelerator."""
    others = torch.cuda.get_rng_state_all() if device.type == "cuda" else []
    return [torch.get_rng_state(), *others]


def set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0].cpu())
    if len(states) > 1:
        torch.cuda.set_rng_state_all([state.cpu() for state in states[1:]])


def copied(weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.detach().clone() for key, value in part.items()}
        for name, part in weights.items()
    }
