"""The process that measures one engine's memory and load time; see `memory`.

python -m tokprune_rt.bench.memory_process JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from tokprune_rt.bench.calibration import calibration_for
from tokprune_rt.bench.candidates import OURS
from tokprune_rt.bench.memory import MemoryTask
from tokprune_rt.bench.peers import PEERS, PeerSetup, load_peer, pad
from tokprune_rt.bench.stage import load_own
from tokprune_rt.bench.workloads import uniform_workload

_WORKLOAD = "1x128"
_STATUS = Path("/proc/self/status")

Call = Callable[[], object]


def status_mb(name: str) -> float:
    """A field of the process's status, in 10^6 bytes."""
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024 / 1e6
    raise OSError(f"{_STATUS} has no {name}")


def _own(task: MemoryTask) -> Callable[[], Call]:
    ids = list(uniform_workload(_WORKLOAD).sequences)

    def load() -> Call:
        folder = Path(task.folder)
        model = load_own(folder, task.layers, task.precision, task.threads, task.isa)
        return lambda: model.forward(ids, profile="off")

    return load


def _other(task: MemoryTask) -> Callable[[], Call]:
    folder = Path(task.folder)
    setup = PeerSetup(folder, task.threads, task.precision, calibration_for(folder))
    batches = [pad(list(uniform_workload(_WORKLOAD).sequences))]
    import_module(f"tokprune_rt.bench.peers.{task.engine}_peer")
    import_module(PEERS[task.engine].needs[0])

    def load() -> Call:
        return load_peer(task.engine, setup).prepare(batches)

    return load


def measure(task: MemoryTask) -> dict[str, float]:
    """The numbers of a `memory.MemoryRow`."""
    load = _own(task) if task.engine == OURS else _other(task)
    # Forgets the peak of the imports, where the system lets a process do that.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status_mb("VmRSS")
    begin = time.perf_counter()
    call = load()
    took = time.perf_counter() - begin
    result = call()
    after, peak = status_mb("VmRSS"), status_mb("VmHWM")
    del result
    return {
        "load_ms": round(took * 1e3, 1),
        "resident_mb": round(after - before, 1),
        "peak_mb": round(peak - before, 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure(MemoryTask(**json.loads(sys.argv[1])))))
