"""Memory and load time of each engine, each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

_PROCESS = "tokprune_rt.bench.memory_process"
_LIMIT_S = 300


@dataclass(frozen=True)
class MemoryRow:
    """One engine with one model.

    Attributes:
        load_ms: from files to a model that is ready for its first batch. Other engines' conversions
            were made before, and the files are in the system's cache.
        resident_mb: resident memory after loading and one forward pass of 1x128, less that of the
            process after importing the engine's libraries, in 10^6 bytes. Mapped files count.
        peak_mb: the most in between, less the same.
    """

    shape: str
    model: str
    engine: str
    precision: str
    load_ms: float
    resident_mb: float
    peak_mb: float


@dataclass(frozen=True)
class MemoryTask:
    """What a measuring process is told: an engine, its precision, and how to load the model."""

    shape: str
    model: str
    engine: str
    precision: str
    folder: str
    layers: int
    threads: int
    isa: str | None


class MeasurementError(RuntimeError):
    """A measuring process failed."""


def measure_memory(task: MemoryTask) -> MemoryRow:
    """Measure in a new process, which gets this one's environment.

    Raises:
        MeasurementError: the process failed; says how it ended.
    """
    command = [sys.executable, "-m", _PROCESS, json.dumps(asdict(task))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"no answer within {_LIMIT_S} s") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise MeasurementError(f"exit status {done.returncode}: {last[0]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return MemoryRow(task.shape, task.model, task.engine, task.precision, **found)
