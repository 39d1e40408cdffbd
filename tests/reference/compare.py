"""Compare another implementation's traces and outputs with the reference, ties aside."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .result import ReferenceResult

OUTPUT = -1
"""`Mismatch.layer` of a difference in the positions of the output rows."""


@dataclass(frozen=True)
class Mismatch:
    """A layer at which one sequence keeps other tokens than the reference."""

    layer: int
    sequence: int
    only_reference: list[int]
    only_other: list[int]
    margin: float


@dataclass
class Comparison:
    """Outcome of `compare`. Differences are largest absolute values over agreeing sequences.

    mismatches    first disagreement of each sequence that no tie explains
    ties          first disagreement of each sequence inside the tie band; excluded from then on
    agreeing      sequences whose decisions all agree
    hidden, pooled, scores
                  largest difference, 0 when nothing was compared; `scores` is relative to the
                  layer's mean absolute score and stops where a sequence starts to differ
    """

    mismatches: list[Mismatch] = field(default_factory=list)
    ties: list[Mismatch] = field(default_factory=list)
    agreeing: list[int] = field(default_factory=list)
    hidden: float = 0.0
    pooled: float = 0.0
    scores: float = 0.0


def compare(
    reference: ReferenceResult,
    *,
    kept: Sequence[Sequence[np.ndarray]] | None = None,
    hidden: Sequence[np.ndarray] | None = None,
    positions: Sequence[np.ndarray] | None = None,
    pooled: np.ndarray | None = None,
    scores: Sequence[Sequence[np.ndarray] | None] | None = None,
    band: float = 1e-5,
) -> Comparison:
    """Compare what is given with the reference; layouts as in `ReferenceResult`.

    `positions` counts as a decision of its own. A disagreement at a layer whose margin is below
    `band` is a tie, any other is a mismatch; either ends the comparison of that sequence. Without
    `kept`, a sequence with any margin below `band` counts as a tie; so does one with such a margin
    of a merge, which may show only later or not at all. `scores` may have None for a layer without
    scores, and is compared where both have a number.
    """
    found = Comparison()
    for b in range(len(reference.hidden)):
        difference = _first_difference(reference, kept, scores, b, found, band)
        # Unseen decisions may have gone the other way wherever the reference came near a tie.
        unseen = min(of[b] for of in reference.margin) if kept is None else np.inf
        if difference is None and positions is not None:
            difference = _difference(OUTPUT, b, reference.positions[b], positions[b], unseen, True)
        if difference is None and unseen < band:
            difference = Mismatch(OUTPUT, b, [], [], unseen)
        if difference is not None:
            (found.ties if difference.margin < band else found.mismatches).append(difference)
            continue
        found.agreeing.append(b)
        if hidden is not None:
            found.hidden = max(found.hidden, _largest(reference.hidden[b], hidden[b]))
        if pooled is not None:
            if reference.pooled is None:
                raise ValueError("the reference was run without pooling")
            found.pooled = max(found.pooled, _largest(reference.pooled[b], pooled[b]))
    return found


def compare_output(
    reference: ReferenceResult, output: Mapping[str, Any], band: float = 1e-5
) -> Comparison:
    """`compare` on a forward dict with packed rows: positions, cu_kept, and optionally (present and
    not None) hidden, pooled, trace_kept, trace_scores. `pooled` needs a reference with pooling."""
    cu = output["cu_kept"]
    hidden = output.get("hidden")
    return compare(
        reference,
        kept=output.get("trace_kept"),
        hidden=None if hidden is None else split_rows(hidden, cu),
        positions=split_rows(output["positions"], cu),
        pooled=output.get("pooled") if reference.pooled is not None else None,
        scores=output.get("trace_scores"),
        band=band,
    )


def split_rows(rows: np.ndarray, cu: np.ndarray) -> list[np.ndarray]:
    """Packed rows [cu[-1], ...] as one array per sequence."""
    return [rows[start:end] for start, end in itertools.pairwise(cu)]


def _first_difference(
    reference: ReferenceResult,
    kept: Sequence[Sequence[np.ndarray]] | None,
    scores: Sequence[Sequence[np.ndarray] | None] | None,
    b: int,
    found: Comparison,
    band: float,
) -> Mismatch | None:
    """The first layer whose kept set differs, scores compared up to and including it, or the first
    whose merges came near a tie, scores compared up to it."""
    for layer, margins in enumerate(reference.margin):
        if reference.unseen[layer][b] < band:
            return Mismatch(layer, b, [], [], reference.unseen[layer][b])
        of_layer = None if scores is None else scores[layer]
        if of_layer is not None:
            expected = reference.scores[layer][b]
            found.scores = max(found.scores, _score_difference(expected, of_layer[b]))
        if kept is not None:
            difference = _difference(
                layer, b, reference.kept[layer][b], kept[layer][b], margins[b], False
            )
            if difference is not None:
                return difference
    return None


def _difference(
    layer: int, b: int, expected: np.ndarray, actual: np.ndarray, margin: float, ordered: bool
) -> Mismatch | None:
    """A Mismatch if the two lists of positions differ as sets, or as sequences if `ordered`."""
    expected_set, actual_set = set(expected.tolist()), set(np.asarray(actual).tolist())
    same = len(expected) == len(actual) and expected_set == actual_set
    if same and (not ordered or np.array_equal(expected, actual)):
        return None
    missing, extra = sorted(expected_set - actual_set), sorted(actual_set - expected_set)
    return Mismatch(layer, b, missing, extra, float(margin))


def _score_difference(expected: np.ndarray, actual: np.ndarray) -> float:
    both = np.isfinite(expected) & np.isfinite(actual)
    if not both.any():
        return 0.0
    scale = float(np.abs(expected[both]).mean()) or 1.0
    return _largest(expected[both], actual[both]) / scale


def _largest(expected: np.ndarray, actual: np.ndarray) -> float:
    if expected.shape != actual.shape:
        raise ValueError(f"shape {actual.shape}, expected {expected.shape}")
    if expected.size == 0:
        return 0.0
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return float(np.nan_to_num(difference, nan=np.inf).max())
