"""What the reference returns, and pooling over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")


@dataclass(frozen=True)
class ReferenceResult:
    """Outputs per sequence b, and traces per layer and sequence. Floats are in the run's dtype.

    hidden[b]     [k, d] rows of the output: the passive first token if there is one, then the kept
                  rows in order (packages last). With a `restore` step: all restored and kept rows
                  by ascending position.
    positions[b]  int [k] original position of each row of `hidden` (a package has its smallest).
    alive[b]      bool [k] rows of `hidden` that are alive at the end (not restored, not passive).
    sizes[b]      int [k] number of input tokens behind each row.
    kept[l][b]    int positions alive after layer l, in row order; the passive first token excluded.
    scores[l][b]  [n0] score by position given by the last step of layer l that scored the token,
                  NaN for none (a package is found at its position).
    margin[l][b]  smallest relative margin of the layer's decisions, inf without any.
    unseen[l][b]  the same of merges, whose outcome need not show in `kept`.
    pooled        [B, modes * d] or None when no pooling was asked for.
    over          rows that mean-like pooling uses by default: kept, size or restored.
    """

    hidden: list[np.ndarray]
    positions: list[np.ndarray]
    alive: list[np.ndarray]
    sizes: list[np.ndarray]
    kept: list[list[np.ndarray]]
    scores: list[list[np.ndarray]]
    margin: list[list[float]]
    unseen: list[list[float]]
    over: str = "kept"
    pooled: np.ndarray | None = None

    def pool(self, modes: Sequence[str], over: str | None = None) -> np.ndarray:
        """Sentence vectors [B, len(modes) * d], the modes concatenated in the given order.

        over: "kept" (alive rows), "size" (alive rows weighted by size) or "restored" (every row of
        `hidden`); default: the plan's. `cls` is the first row of `hidden`, whatever `over` is.
        """
        over = over or self.over
        rows = [self._pool_one(b, modes, over) for b in range(len(self.hidden))]
        return np.stack(rows)

    def _pool_one(self, b: int, modes: Sequence[str], over: str) -> np.ndarray:
        if over not in ("kept", "size", "restored"):
            raise ValueError(f"unknown pooling domain {over!r}")
        chosen = np.ones_like(self.alive[b]) if over == "restored" else self.alive[b]
        x, positions = self.hidden[b][chosen], self.positions[b][chosen]
        weight = self.sizes[b][chosen] if over == "size" else np.ones(len(x))
        return np.concatenate([self._mode(mode, b, x, positions, weight) for mode in modes])

    def _mode(
        self, mode: str, b: int, x: np.ndarray, positions: np.ndarray, weight: np.ndarray
    ) -> np.ndarray:
        if mode == "cls":
            return self.hidden[b][0]
        if len(x) == 0:
            return np.zeros_like(self.hidden[b][0])
        if mode == "max":
            return x.max(axis=0)
        if mode == "mean":
            return weight @ x / weight.sum()
        if mode == "mean_sqrt_len":
            return weight @ x / np.sqrt(weight.sum())
        if mode == "weightedmean":
            # By place in the input: a survivor weighs what it weighs in the dense run.
            by_place = weight * (positions + 1)
            return by_place @ x / by_place.sum()
        if mode == "lasttoken":
            return x[np.argmax(positions)]
        raise ValueError(f"unknown pooling mode {mode!r}, expected one of {POOLING_MODES}")
