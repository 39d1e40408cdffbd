"""Selectors: which of the alive tokens of one sequence stay, and how close the decision was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_RANKED = ("topk", "ratio", "quantile", "rank_bins")


@dataclass(frozen=True)
class Selection:
    """keep bool [n]; margin: relative distance of the nearest token to a decision boundary."""

    keep: np.ndarray
    margin: float


def select(
    spec: Mapping[str, Any],
    scores: np.ndarray,
    protected: np.ndarray,
    positions: np.ndarray,
    n0: int,
    *,
    noise_free: bool = False,
    least: float = 0.0,
) -> Selection:
    """Decide for the n alive tokens of one sequence.

    scores float64 [n], protected bool [n], positions int [n] (ties: the lower position wins), n0
    the input length. With `noise_free` scores (the same bits in every implementation) a decision
    that only compares scores with each other or with a constant has margin inf, however close.
    Margins are relative to the scores compared, or to `least` if that is more: for scores of either
    sign, whose error does not shrink with them.
    """
    candidates = np.flatnonzero(~protected)
    order = candidates[np.lexsort((positions[candidates], -scores[candidates]))]
    ranked = scores[order]
    pinned = int(protected.sum())

    stays, margin = _base(spec, ranked, scores, pinned, n0, least)
    before = stays.copy()
    _apply_limits(spec, stays, pinned)
    if (before != stays).any():
        margin = min(margin, _gap(ranked, stays, least))
    if noise_free and spec["kind"] in (*_RANKED, "threshold"):
        margin = math.inf

    keep = protected.copy()
    keep[order] = stays
    return Selection(keep, margin)


def _base(
    spec: Mapping[str, Any],
    ranked: np.ndarray,
    scores: np.ndarray,
    pinned: int,
    n0: int,
    least: float,
) -> tuple[np.ndarray, float]:
    """The selector without limits: stays bool [u] in descending score order, and the margin."""
    kind = spec["kind"]
    n, u = len(scores), len(ranked)
    if kind == "topk":
        stays = _first(u, spec["k"] - pinned)
    elif kind == "ratio":
        stays = _first(u, ratio_count(spec, n, n0) - pinned)
    elif kind == "quantile":
        stays = _first(u, u - math.floor(spec["q"] * u + 1e-9))
    elif kind == "rank_bins":
        bits = np.asarray(spec["bits"], dtype=bool)
        stays = np.array([bits[_bin(spec["bin_rule"], r, u, len(bits))] for r in range(u)], bool)
    elif kind == "top_p":
        return _top_p(spec["p"], ranked)
    else:
        theta = _threshold(spec, scores)
        stays = ranked.astype(np.float32) >= theta
        scale = max(abs(float(theta)), least)
        if u == 0 or scale == 0:
            return stays, math.inf
        return stays, float(np.min(np.abs(ranked - theta)) / scale)
    return stays, _gap(ranked, stays, least)


def _threshold(spec: Mapping[str, Any], scores: np.ndarray) -> np.float32:
    if spec["kind"] == "threshold":
        return np.float32(spec["theta"])
    if spec["kind"] == "gate":
        return np.float32(spec["threshold"])
    if spec["kind"] == "threshold_n":
        return np.float32(spec["eta"] / len(scores))
    if spec["kind"] == "threshold_rel":
        reference = scores.max() if spec["of"] == "max" else scores.mean()
        return np.float32(spec["t"] * reference)
    raise ValueError(f"unknown selector {spec['kind']!r}")


def ratio_count(spec: Mapping[str, Any], n: int, n0: int) -> int:
    """Number of tokens that a ratio leaves, protected ones included."""
    x = spec["ratio"] * (n0 if spec["of"] == "n0" else n)
    if spec["round"] == "ceil":
        return math.ceil(x - 1e-9)
    if spec["round"] == "floor":
        return math.floor(x + 1e-9)
    return round(x)


def _bin(rule: str, rank: int, u: int, bins: int) -> int:
    if rule == "int":
        return rank * bins // u
    if rule != "float32":
        raise ValueError(f"unknown bin rule {rule!r}")
    share = np.float32(rank) / np.float32(u + 1e-6)
    return min(int(np.float32(share * np.float32(bins))), bins - 1)


def _top_p(p: float, ranked: np.ndarray) -> tuple[np.ndarray, float]:
    """Shortest prefix whose float64 sum reaches p of the total."""
    u = len(ranked)
    if u == 0:
        return np.zeros(0, dtype=bool), math.inf
    sums = np.concatenate([[0.0], np.cumsum(ranked, dtype=np.float64)])
    target = p * sums[-1]
    reached = np.flatnonzero(sums >= target)
    count = int(reached[0]) if len(reached) else u
    stays = _first(u, count)
    # The whole set reaches p <= 1 of its own sum whatever the rounding, so it is no boundary.
    edges = [sums[k] for k in (count - 1, count) if 0 < k < u]
    margin = min((_relative(edge, target) for edge in edges), default=math.inf)
    return stays, min(margin, _gap(ranked, stays))


def _apply_limits(spec: Mapping[str, Any], stays: np.ndarray, pinned: int) -> None:
    """Add the best dropped tokens up to min_tokens, then remove the worst ones above max_tokens."""
    missing = spec["min_tokens"] - pinned - int(stays.sum())
    if missing > 0:
        stays[np.flatnonzero(~stays)[:missing]] = True
    if spec["max_tokens"] > 0:
        excess = min(pinned + int(stays.sum()) - spec["max_tokens"], int(stays.sum()))
        if excess > 0:
            stays[np.flatnonzero(stays)[-excess:]] = False


def _first(u: int, count: int) -> np.ndarray:
    return np.arange(u) < count


def _gap(ranked: np.ndarray, stays: np.ndarray, least: float = 0.0) -> float:
    """Smallest relative gap between neighbours in score order that meet different fates."""
    edges = np.flatnonzero(stays[1:] != stays[:-1])
    return min((_relative(ranked[i], ranked[i + 1], least) for i in edges), default=math.inf)


def _relative(a: float, b: float, least: float = 0.0) -> float:
    scale = max(abs(a), abs(b), least)
    return float(abs(a - b) / scale) if scale > 0 else 0.0
