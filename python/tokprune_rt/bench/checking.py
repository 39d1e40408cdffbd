"""Running a candidate once and comparing its result with the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokprune_rt.bench.candidates import (
    PACKED,
    PADDED,
    PRUNED,
    Candidate,
    padded_workload,
    reference_rows,
)
from tokprune_rt.bench.peers import REFERENCE, FloatArray
from tokprune_rt.bench.precision import TOLERANCES
from tokprune_rt.bench.pruning import kept_shares
from tokprune_rt.bench.stage import Stage
from tokprune_rt.bench.verify import Agreement, check_pruned, compare
from tokprune_rt.bench.workloads import Workload

_CHECKED_SEQUENCES = 3


@dataclass(frozen=True)
class Checked:
    """A candidate whose result was compared.

    Attributes:
        macs: multiply-adds that it executes.
        agreement, how: how close it is, and to what; None: nothing to compare with.
        embeddings: float32 [n, d] mean-pooled states, of this package's dense and pruned runs.
    """

    candidate: Candidate
    macs: int
    agreement: Agreement | None
    how: str
    embeddings: FloatArray | None


def reference(stage: Stage, workload: Workload) -> list[FloatArray] | None:
    """What the reference engine says about this workload; None when it is not there."""
    engine = stage.reference
    return None if engine is None else reference_rows(engine, stage.config, workload)


def label(stage: Stage, workload: Workload, entry: Candidate) -> str:
    """The candidate in words."""
    return f"{entry.engine} {entry.precision} {entry.mode}, {stage.shape.name} {workload.name}"


def check(
    stage: Stage, workload: Workload, entry: Candidate, expected: Sequence[FloatArray] | None
) -> Checked:
    """Run a candidate once and compare its result.

    Args:
        expected: rows of the reference for each sequence; None without a reference.

    Raises:
        VerificationError: the result is outside the tolerance of its precision.
    """
    outputs = entry.run()
    rows = entry.rows(outputs)
    ours = not entry.is_peer
    macs = sum(output.stats.macs for output in outputs) if ours else entry.macs or 0
    embeddings = None
    if entry.mode in (PACKED, PRUNED):
        embeddings = np.stack([states.mean(axis=0) for states in rows])
    agreement, how = None, f"nothing, because {REFERENCE} is not installed"
    if expected is not None:
        agreement, how = _compared(stage, workload, entry, rows, expected)
    return Checked(entry, macs, agreement, how, embeddings)


def _compared(
    stage: Stage,
    workload: Workload,
    entry: Candidate,
    rows: Sequence[FloatArray],
    expected: Sequence[FloatArray],
) -> tuple[Agreement | None, str]:
    engine = stage.reference
    if engine is None:
        return None, "nothing"
    what = label(stage, workload, entry)
    tolerance = TOLERANCES[entry.precision]
    if entry.mode == PRUNED:
        count = min(_CHECKED_SEQUENCES, len(workload.sequences))
        model, shares = stage.models[entry.precision], kept_shares(stage.shape.layers)
        found = check_pruned(
            engine.bert, model, shares, workload.sequences[:count], tolerance, what
        )
        return found, f"states and decisions of {count} sequences to {REFERENCE}"
    if entry.mode == PADDED:
        first = workload.batches()[0]
        part = padded_workload(workload).part(first)
        padded = reference_rows(engine, stage.config, part)
        # Padding that is read as text has no meaning that a reduced precision could keep.
        lengths = [len(workload.sequences[i]) for i in first]
        texts = [states[:n] for states, n in zip(padded, lengths, strict=True)]
        own = [rows[i][:n] for i, n in zip(first, lengths, strict=True)]
        found = compare(texts, own, what, tolerance)
        return found, f"texts of the first batch to {REFERENCE} without a mask"
    return compare(expected, rows, what, tolerance), f"all states to {REFERENCE}"
