"""Decisions that stay at a budget of work while the weights that move their scores learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Held(nn.Module):
    """What the second stage's tokens leave by: a method's policy under a factor that is fitted anew
    at equal intervals, the last time at the end, so that epochs are compared at the same work.

    Args:
        factor: to begin with, see `Method.policy`.
        fit: the factor that meets the budget with the weights as they are, near an earlier one.
        make: the chooser of a factor.
        model: whose weights learn; in training mode after a step.
        times: that the factor is fitted in a stage.
    """

    factor: Tensor
    fitted: Tensor

    def __init__(
        self,
        factor: float,
        fit: Callable[[float], float],
        make: Callable[[float], Any],
        model: nn.Module,
        times: int,
    ) -> None:
        super().__init__()
        # Buffers, so that checkpoints and the best epoch's weights have them.
        self.register_buffer("factor", torch.tensor(factor, dtype=torch.float64))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))
        self._fit, self._make, self._times = fit, make, times
        self._model = (model,)  # not a part of this module
        self._made: tuple[float, Any] = (factor, make(factor))

    def chooser(self) -> Any:
        """For one step, and for evaluations."""
        factor = float(self.factor)
        if self._made[0] != factor:
            self._made = (factor, self._make(factor))
        return self._made[1]

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """``done`` of the stage is over."""
        due = math.floor(done * self._times + 1e-6)
        if due > int(self.fitted):
            self.factor.fill_(self._fit(float(self.factor)))
            self.fitted.fill_(due)
            self._model[0].train()
