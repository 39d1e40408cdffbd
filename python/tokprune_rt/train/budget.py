"""Holding what a method learns to a budget of work: counting multiply-adds, and the Lagrangian."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Of the penalty on the square of what exceeds the target, and of the linear multiplier's growth.
_SQUARE, _GROWTH = 50.0, 0.5
# How far from the target a factor's work may be.
_NEAR = 1e-3


@dataclass(frozen=True)
class Widths:
    """What multiply-adds depend on.

    Work is counted as in the LTP paper: every layer in full for the tokens that are in it.
    """

    layers: int
    hidden: int
    intermediate: int

    def macs(self, entering: Tensor, leaving: Tensor) -> Tensor:
        """Of one layer: attention on ``entering`` tokens, what follows it on ``leaving``."""
        d = self.hidden
        # Q, K and V and the scores for all; P V, its projection and the feed-forward for the rest.
        first = 3 * d * d * entering + d * entering * entering
        return first + d * entering * leaving + (d * d + 2 * d * self.intermediate) * leaving

    def dense(self, lengths: Tensor) -> Tensor:
        """Of the dense model, all sequences together."""
        full = lengths.to(torch.float32)
        return self.layers * self.macs(full, full).sum()

    def share_of_dense(
        self, lengths: Tensor, left: Sequence[Tensor], before: bool = False
    ) -> Tensor:
        """Multiply-adds of all sequences together, of the dense model's.

        Args:
            lengths: [B], tokens of the inputs.
            left: [B] for each layer, tokens that it leaves.
            before: the tokens leave before the layer instead of after its softmax.
        """
        entering = lengths.to(torch.float32)
        total = torch.zeros((), device=entering.device)
        for leaving in left:
            total = total + self.macs(leaving if before else entering, leaving).sum()
            entering = leaving
        return total / self.dense(lengths)


class Budget(nn.Module):
    """An augmented Lagrangian that holds the expected work at a target.

    The penalty is linear and square in what the work exceeds the target by (or falls below it). The
    linear multiplier grows by the excess of every step, and by nothing else: an optimizer's steps,
    whose size does not depend on the excess, would drive it far beyond what holds the target.

    Args:
        target: of the dense model's multiply-adds.
        warm_up: share of the stage in which the target falls from 1; 0: none.
    """

    linear: Tensor

    def __init__(self, target: float, warm_up: float = 0.4) -> None:
        super().__init__()
        if not 0 < target < 1:
            raise ValueError(f"target: found {target}; allowed: above 0, below 1")
        self.target, self.warm_up = target, warm_up
        self.register_buffer("linear", torch.zeros(()))
        self._excess: list[tuple[Tensor, int]] = []

    def forward(self, expected: Tensor, done: float, texts: int = 1) -> Tensor:
        """The penalty on the expected share of work of so many ``texts`` when ``done`` of the stage
        is over."""
        now = 1 - (1 - self.target) * (min(1.0, done / self.warm_up) if self.warm_up else 1.0)
        excess = expected - now
        self._excess.append((excess.detach(), texts))
        return self.linear * excess + _SQUARE * excess.square()

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the multiplier follow what the penalties of a step were of."""
        total = sum(texts for _, texts in self._excess)
        self.linear += _GROWTH * sum(excess * (texts / total) for excess, texts in self._excess)
        self._excess = []


def factor_for(target: float, macs: Callable[[float], float]) -> float:
    """The factor of thresholds at which ``macs(factor)``, which falls with it, is nearest to
    ``target``; between 1/16 and 16. Work comes in steps, so that it may remain a little off."""
    low, high = 1 / 16, 16.0
    tried: list[tuple[float, float]] = []
    for _ in range(9):
        middle = (low * high) ** 0.5
        found = macs(middle)
        tried.append((abs(found - target), middle))
        if tried[-1][0] < _NEAR:
            break
        low, high = (middle, high) if found > target else (low, middle)
    return min(tried)[1]


def factor_near(target: float, macs: Callable[[float], float], near: float) -> float:
    """The same beginning at a factor that was right a while ago, which mostly takes three
    evaluations instead of nine; at most half as much again."""
    at, low, high = math.log(near), math.log(near) - 0.4, math.log(near) + 0.4
    slope = -0.5  # a first guess of how work falls with the logarithm
    tried: list[tuple[float, float]] = []
    while len(tried) < 5:
        excess = macs(math.exp(at)) - target
        if tried:
            slope = min(-0.05, (excess - tried[-1][1]) / (at - tried[-1][0]))
        tried.append((at, excess))
        then = min(high, max(low, at + min(0.2, max(-0.2, -excess / slope))))
        if abs(excess) < _NEAR or then == at:
            break
        at = then
    return math.exp(min(tried, key=lambda point: abs(point[1]))[0])
