"""The models in use, and one engine's way of running one workload."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from tokprune_rt._core import default_threads
from tokprune_rt.bench.candidates import Candidate, packed, padded, peer, pruned
from tokprune_rt.bench.checking import reference
from tokprune_rt.bench.models import REAL_MODEL, SHAPES, model_folder
from tokprune_rt.bench.peers import PEERS, FloatArray, missing
from tokprune_rt.bench.precision import rival
from tokprune_rt.bench.stage import Stage, stage
from tokprune_rt.bench.workloads import Order, Workload
from tokprune_rt.loader import resolve

RunCase = Callable[[str, Workload, str, str], None]

_OURS = {"padded": padded, "packed": packed, "pruned": pruned}
_ROUND_SECONDS = 2.0
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 60


class Bench:
    """The model in use, in every engine that has run it, and the reference for one workload."""

    def __init__(self, threads: int | None, precision: str) -> None:
        self._threads = threads or default_threads()
        self.precision = precision
        self._stack = ExitStack()
        self._key: tuple[str, bool] | None = None
        self._stage: Stage | None = None
        self._workload: Workload | None = None
        self._expected: list[FloatArray] | None = None

    def close(self) -> None:
        self._stage = self._workload = self._expected = self._key = None
        self._stack.close()

    def stage(self, shape: str, real: bool) -> Stage:
        """All engines with this model; the one before is released."""
        if self._key != (shape, real) or self._stage is None:
            self.close()
            folder, label = self._model(shape, real)
            other = rival(self.precision)
            usable = [(name, other) for name in PEERS if missing(name, other) is None]
            loading = stage(SHAPES[shape], folder, label, usable, self._threads, [self.precision])
            self._stage = self._stack.enter_context(loading)
            self._key = (shape, real)
        return self._stage

    @staticmethod
    def _model(shape: str, real: bool) -> tuple[Path, str]:
        if real:
            return resolve(REAL_MODEL), REAL_MODEL
        return model_folder(SHAPES[shape]), "random weights"

    def expected(self, loaded: Stage, workload: Workload) -> list[FloatArray] | None:
        """What the reference engine says."""
        if self._workload is not workload:
            self._expected = reference(loaded, workload)
            self._workload = workload
        return self._expected


def candidate(
    loaded: Stage, workload: Workload, engine: str, precision: str, mode: str
) -> Candidate:
    """``engine`` on this workload; ``mode`` is padded, packed or pruned for this package, arrival
    or sorted for the others."""
    if engine == "tokprune":
        return _OURS[mode](loaded.models[precision], precision, workload)
    order: Order = "sorted" if mode == "sorted" else "arrival"
    other = rival(precision)
    return peer(engine, other, loaded.peers[engine, other], loaded.config, workload, order)


def rounds_for(entry: Candidate) -> int:
    """How often to time it, from one call that is not counted."""
    begin = perf_counter()
    entry.run()
    seconds = perf_counter() - begin
    return min(_MOST_ROUNDS, max(_LEAST_ROUNDS, int(_ROUND_SECONDS / seconds)))
