"""Which of the alive tokens of one sequence become one row together, and how close that was.

Rows are those alive before the step, in order of position; an index counts them all, protected ones
included. Ties go to the lower position, here the lower index.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .select import ratio_count, select

MERGING = ("merge", "pool")
"""Actions that join rows."""


@dataclass(frozen=True)
class Grouping:
    """What one step joins.

    groups  ascending indices of the rows that become one, two or more in each
    scores  float64 [n] the similarity of a row to its partner, NaN for rows without
    margin  distance of the nearest decision to another one, in units of a similarity; unlike a
            selection's it need not show in the positions that are left
    """

    groups: list[np.ndarray]
    scores: np.ndarray
    margin: float


def cosines(vectors: np.ndarray) -> np.ndarray:
    """[n, n] of vectors [n, d], in float64; 0 for a vector of zeros."""
    rows = vectors.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    return unit @ unit.T


def group(
    spec: Mapping[str, Any], cosine: np.ndarray | None, protected: np.ndarray, n0: int
) -> Grouping:
    """Decide for the n alive tokens of one sequence.

    cosine [n, n] (None for `pool`), protected bool [n], n0 the input length.
    """
    if spec["kind"] == "pool":
        return _pool(spec, protected, n0)
    if cosine is None:
        raise ValueError(f"the selector {spec['kind']!r} needs similarities")
    if spec["kind"] == "bipartite":
        return _bipartite(spec, cosine, protected, n0)
    if spec["kind"] == "energy_pairs":
        return _energy_pairs(spec, cosine, protected, n0)
    if spec["kind"] == "all_pairs":
        return _all_pairs(spec, cosine, protected, n0)
    raise ValueError(f"unknown selector of groups {spec['kind']!r}")


def _bipartite(
    spec: Mapping[str, Any], cosine: np.ndarray, protected: np.ndarray, n0: int
) -> Grouping:
    n = len(protected)
    index = np.arange(n)
    in_a = ~protected & (index % 2 == 0)
    a, b = index[in_a], index[~protected & (index % 2 == 1)]
    scores = np.full(n, math.nan)
    if len(a) == 0 or len(b) == 0:
        return Grouping([], scores, math.inf)
    scores[a] = cosine[np.ix_(a, b)].max(axis=1)
    if (spec["ratio"] is None) == (spec["theta"] is None):
        raise ValueError("bipartite needs one of ratio and theta")
    if spec["theta"] is None:
        rule = {**spec, "kind": "ratio"}
    else:
        rule = {**spec, "kind": "threshold", "theta": -spec["theta"]}
    # The scores of all but A count for nothing: they stay.
    selection = select(rule, np.where(in_a, -scores, 0), ~in_a, index, n0, least=1.0)
    merging = a[~selection.keep[a]]
    groups, closeness = _partners(cosine, merging, b)
    return Grouping(groups, scores, min(selection.margin, closeness))


def _energy_pairs(
    spec: Mapping[str, Any], cosine: np.ndarray, protected: np.ndarray, n0: int
) -> Grouping:
    n, free = len(protected), np.flatnonzero(~protected)
    scores = np.full(n, math.nan)
    pairs = n - ratio_count(spec, n, n0)
    if spec["max_tokens"] > 0:
        pairs = max(pairs, n - spec["max_tokens"])
    pairs = min(pairs, n - spec["min_tokens"], len(free) // 2)
    if pairs <= 0:
        return Grouping([], scores, math.inf)
    among, least = cosine[np.ix_(free, free)], spec["margin"]
    weak = spec["alpha"] * (np.exp(among - least) - 1)
    energy = np.where(among >= least, among, weak).mean(axis=1)
    order = np.lexsort((free, -energy))
    # The side of a row depends on its rank, so every neighbour in rank matters, but in a sole pair.
    compared = energy[order[pairs == 1 : 2 * pairs + 1]]
    margin = float(np.min(-np.diff(compared), initial=math.inf))
    if least != 0:  # the energy jumps there
        margin = min(margin, float(np.abs(among - least).min()))
    ranked = free[order]
    a, b = np.sort(ranked[: 2 * pairs : 2]), np.sort(ranked[1 : 2 * pairs : 2])
    scores[a] = cosine[np.ix_(a, b)].max(axis=1)
    groups, closeness = _partners(cosine, a, b)
    return Grouping(groups, scores, min(margin, closeness))


def _all_pairs(
    spec: Mapping[str, Any], cosine: np.ndarray, protected: np.ndarray, n0: int
) -> Grouping:
    n = len(protected)
    if (spec["ratio"] is None) == (spec["theta"] is None):
        raise ValueError("all_pairs needs one of ratio and theta")
    pairs = list(itertools.combinations(np.flatnonzero(~protected), 2))
    pairs.sort(key=lambda pair: -cosine[pair])  # stable: ties stay in order of position
    above = math.inf if spec["theta"] is None else spec["theta"]
    left = n if spec["theta"] is not None else max(ratio_count(spec, n, n0), spec["min_tokens"])
    if spec["max_tokens"] > 0:
        left = min(left, spec["max_tokens"])
    least = n - left
    most = least if spec["theta"] is None else max(least, n - spec["min_tokens"])

    host: dict[int, int] = {}
    scores = np.full(n, math.nan)
    margin = last = math.inf

    def is_open(pair: tuple[int, int]) -> bool:
        hosts = set(host.values())
        return not any(i in host for i in pair) and not all(i in hosts for i in pair)

    for place, (i, j) in enumerate(pairs):
        if not is_open((i, j)):
            continue
        value = cosine[i, j]
        if len(host) >= most:
            margin = min(margin, last - value)  # it might have come before the last
            break
        if len(host) >= least:
            margin = min(margin, abs(value - above))
            if value <= above:
                break
        rivals = (pair for pair in pairs[place + 1 :] if i in pair or j in pair)
        rival = next(filter(is_open, rivals), None)
        if rival is not None:
            margin = min(margin, value - cosine[rival])
        guest = i if j in host.values() else j
        host[guest] = i + j - guest
        scores[guest] = last = value
    groups = [
        np.sort([*(guest for guest, at in host.items() if at == leader), leader])
        for leader in set(host.values())
    ]
    return Grouping(sorted(groups, key=lambda group: group[0]), scores, float(margin))


def _partners(
    cosine: np.ndarray, merging: np.ndarray, b: np.ndarray
) -> tuple[list[np.ndarray], float]:
    """Groups of each b with all that merge into it, and how close another partner was."""
    if len(merging) == 0:
        return [], math.inf
    similar = cosine[np.ix_(merging, b)]
    partner = b[np.argmax(similar, axis=1)]
    groups = [np.sort([*merging[partner == j], j]) for j in np.unique(partner)]
    if len(b) == 1:
        return groups, math.inf
    second, best = np.sort(similar, axis=1)[:, -2:].T
    return groups, float((best - second).min())


def _pool(spec: Mapping[str, Any], protected: np.ndarray, n0: int) -> Grouping:
    n, free = len(protected), np.flatnonzero(~protected)
    pinned, u = n - len(free), len(free)
    if (spec["ratio"] is None) == (spec["stride"] == 0):
        raise ValueError("pool needs one of ratio and stride")
    if spec["ratio"] is None:
        bounds = [*range(0, u, spec["stride"]), u]
        total = len(bounds) - 1 + pinned
        if 0 < spec["max_tokens"] < total:
            bounds = _even(u, spec["max_tokens"] - pinned)
    else:
        total = max(ratio_count(spec, n, n0), spec["min_tokens"])
        if spec["max_tokens"] > 0:
            total = min(total, spec["max_tokens"])
        bounds = _even(u, total - pinned)
    groups = [free[start:end] for start, end in itertools.pairwise(bounds)]
    return Grouping([g for g in groups if len(g) > 1], np.full(n, math.nan), math.inf)


def _even(u: int, groups: int) -> list[int]:
    """Bounds of `groups` groups (at least one, at most u) over u rows, equal but for rounding."""
    m = max(min(groups, u), 1)
    return [g * u // m for g in range(m + 1)]
