"""The search: from dense on, the step that costs the least quality for the work it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .families import SHARES, Shares

_HALVINGS = 4


@dataclass(frozen=True)
class Point:
    """A policy of the search on the texts it searches with.

    Attributes:
        shares: of the tokens that leave each layer.
        macs: multiply-adds, of the dense model's.
        loss: distance to the dense model's answers; 0 is none.
    """

    shares: Shares
    macs: float
    loss: float


Evaluate = Callable[[Shares], Point]


def search(
    evaluate: Evaluate,
    layers: int,
    enough: Callable[[Point], bool],
    go_on: Callable[[], bool] = lambda: True,
) -> list[Point]:
    """Policies of falling cost, each a small step from the one before.

    From the dense model on, the layer whose next share costs the least quality for the
    multiply-adds it saves takes it. Prices of earlier steps say whom to ask first, so that a step
    rarely asks every layer.

    Args:
        evaluate: measures one policy.
        layers: of the model.
        enough: asked for every step; True ends the search.
        go_on: asked before every measurement; False ends the search with what was found.
    """
    path = [Point((0.0,) * layers, 1.0, 0.0)]
    prices = [0.0] * layers
    while not enough(path[-1]):
        found = _next(evaluate, path[-1], prices, go_on)
        if found is None:
            break
        path.append(found)
    return path


def _next(
    evaluate: Evaluate, current: Point, prices: list[float], go_on: Callable[[], bool]
) -> Point | None:
    """The cheapest of the next steps; updates the prices. None when there is none, or no time."""
    trials: dict[int, Point] = {}
    while True:
        open_layers = [i for i, share in enumerate(current.shares) if share < SHARES[-1]]
        if not open_layers:
            return None
        layer = min(open_layers, key=lambda i: prices[i])
        if layer in trials:
            return trials[layer] if prices[layer] < math.inf else None
        if not go_on():
            return None
        trial = current
        # Of a few tokens a small share is none.
        while trial.macs >= current.macs and trial.shares[layer] < SHARES[-1]:
            trial = evaluate(_raised(trial.shares, layer))
        trials[layer] = trial
        saved = current.macs - trial.macs
        prices[layer] = (trial.loss - current.loss) / saved if saved > 0 else math.inf


def _raised(shares: Shares, layer: int) -> Shares:
    larger = SHARES[SHARES.index(shares[layer]) + 1]
    return (*shares[:layer], larger, *shares[layer + 1 :])


def uniform_loss(evaluate: Evaluate, layers: int, macs: float) -> float:
    """The loss at a share of the multiply-adds when every layer loses the same share of tokens.

    Infinite when that share is out of reach.
    """
    low, high = Point((0.0,) * layers, 1.0, 0.0), evaluate((SHARES[-1],) * layers)
    if high.macs > macs:
        return math.inf
    for _ in range(_HALVINGS):
        middle = evaluate((round((low.shares[0] + high.shares[0]) / 2, 4),) * layers)
        low, high = (middle, high) if middle.macs > macs else (low, middle)
    return float(np.interp(macs, [high.macs, low.macs], [high.loss, low.loss]))
