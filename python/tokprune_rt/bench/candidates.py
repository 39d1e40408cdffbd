"""The things that are timed against each other, and their results row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.bench.peers import REFERENCE, FloatArray, Peer, pad
from tokprune_rt.bench.precision import DEFAULT, PRECISIONS, rival
from tokprune_rt.bench.stage import Stage
from tokprune_rt.bench.workloads import Order, Workload
from tokprune_rt.loader.config import EncoderConfig
from tokprune_rt.model import Model
from tokprune_rt.outputs import ForwardOutput, dense_macs

OURS = "tokprune"
PADDED, PACKED, PRUNED = "padded dense", "packed dense", "packed pruned"


@dataclass(frozen=True)
class Candidate:
    """One engine in one way of running a workload.

    Attributes:
        engine: its name.
        precision: what it computes in.
        mode: the rung of the ladder for this package, the order of the texts for the others.
        run: runs the whole workload.
        rows: turns what ``run`` returned into float32 [kept_i, d] for each sequence of the
            workload.
        macs: multiply-adds of the encoder layers, or None when only ``run`` tells.
    """

    engine: str
    precision: str
    mode: str
    run: Callable[[], Sequence[Any]]
    rows: Callable[[Sequence[Any]], list[FloatArray]]
    macs: int | None

    @property
    def is_peer(self) -> bool:
        return self.engine != OURS


def _in_order(
    batches: Sequence[NDArray[np.int64]], results: Sequence[Sequence[FloatArray]]
) -> list[FloatArray]:
    pairs = [
        (int(index), rows)
        for indices, result in zip(batches, results, strict=True)
        for index, rows in zip(indices, result, strict=True)
    ]
    return [rows for _, rows in sorted(pairs, key=lambda pair: pair[0])]


def macs_of(config: EncoderConfig, lengths: NDArray[np.int64]) -> int:
    """Multiply-adds of the encoder layers for sequences of these lengths."""
    return dense_macs(lengths, config.layers, config.hidden, config.intermediate)


def pruned(model: Model, precision: str, workload: Workload) -> Candidate:
    """This package with the model's policy; texts in order of arrival."""
    return _packed(model, precision, workload, PRUNED, None)


def packed(model: Model, precision: str, workload: Workload) -> Candidate:
    """This package, dense, nothing padded; texts in order of arrival."""
    return _packed(model, precision, workload, PACKED, "off")


def _packed(
    model: Model, precision: str, workload: Workload, mode: str, profile: str | None
) -> Candidate:
    batches = workload.batches()
    inputs = [[workload.sequences[i] for i in items] for items in batches]

    def run() -> list[ForwardOutput]:
        return [model.forward(batch, profile=profile) for batch in inputs]

    def rows(outputs: Sequence[ForwardOutput]) -> list[FloatArray]:
        return _in_order(batches, [output.hidden for output in outputs])

    macs = macs_of(model.config, workload.lengths) if profile == "off" else None
    return Candidate(OURS, precision, mode, run, rows, macs)


def padded_workload(workload: Workload) -> Workload:
    """Every sequence filled up with padding tokens to the longest of its batch."""
    padded = list(workload.sequences)
    for items in workload.batches():
        batch = pad([workload.sequences[i] for i in items])
        for i, ids in zip(items, batch.ids.astype(np.int32), strict=True):
            padded[i] = ids
    return Workload(workload.name, tuple(padded), workload.batch_size, workload.real_text)


def padded(model: Model, precision: str, workload: Workload) -> Candidate:
    """This package, dense, doing the work of an engine that pads.

    There is no mask here, so its results are those of `padded_workload`, not of the texts.
    """
    return _packed(model, precision, padded_workload(workload), PADDED, "off")


def peer(
    name: str,
    precision: str,
    engine: Peer,
    config: EncoderConfig,
    workload: Workload,
    order: Order,
) -> Candidate:
    """Another engine on padded batches with an attention mask."""
    batches = workload.batches(order)
    inputs = [pad([workload.sequences[i] for i in items]) for items in batches]

    def rows(results: Sequence[FloatArray]) -> list[FloatArray]:
        cut = [
            [np.array(row[:n]) for row, n in zip(result, batch.lengths, strict=True)]
            for result, batch in zip(results, inputs, strict=True)
        ]
        return _in_order(batches, cut)

    mode = "dense" if workload.uniform else f"padded, {order}"
    macs = macs_of(config, workload.padded_lengths(order))
    return Candidate(name, precision, mode, engine.prepare(inputs), rows, macs)


def candidates(stage: Stage, workload: Workload) -> list[Candidate]:
    """Everything that runs this workload: by precision, the peers first.

    What competes with fp32 peers stands with them.
    """
    orders: list[Order] = ["arrival"] if workload.uniform else ["arrival", "sorted"]
    found: list[Candidate] = []
    for group in dict.fromkeys(rival(precision) for precision in PRECISIONS):
        found += [
            peer(name, precision, engine, stage.config, workload, order)
            for order in orders
            for (name, precision), engine in stage.peers.items()
            if precision == group
        ]
        for precision in PRECISIONS:
            if rival(precision) == group and precision in stage.models:
                found += _ladder(stage.models[precision], precision, workload)
    return found


def _ladder(model: Model, precision: str, workload: Workload) -> list[Candidate]:
    rungs = [packed, pruned] if workload.uniform else [padded, packed, pruned]
    return [rung(model, precision, workload) for rung in rungs]


def reference_rows(engine: Peer, config: EncoderConfig, workload: Workload) -> list[FloatArray]:
    """What the reference engine says, sorted by length to pad least."""
    run = peer(REFERENCE, DEFAULT, engine, config, workload, "sorted")
    return run.rows(run.run())
