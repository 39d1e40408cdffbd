"""What the machine can do at most, measured in the run whose numbers are compared with it.

These are the rates of library calls that a reader can repeat, not of the hardware's data sheet: a
share above 100% means that an engine beat the library.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module, util
from typing import Any

import numpy as np

_SIZE = 1536
_READ_BYTES = 256 << 20
_REPEATS = 4


@dataclass
class Ceilings:
    """The best rates seen so far.

    Attributes:
        read_gb_s: GB/s of reading memory, all threads together.
        gemm_gflops: GFLOP/s of square matrix products at a precision, for those that a library
            here has; a multiply-add is two operations.
        library: what multiplied.
    """

    read_gb_s: float = 0.0
    gemm_gflops: dict[str, float] = field(default_factory=dict)
    library: str = ""

    def measure(self, threads: int, precisions: set[str]) -> None:
        """Measure again and keep what is better; takes part of a second."""
        self.read_gb_s = max(self.read_gb_s, _read_gb_s(threads))
        calls, self.library = _products(threads, precisions)
        operations = 2.0 * _SIZE**3
        for precision, call in calls.items():
            rate = operations / _best(call) / 1e9
            self.gemm_gflops[precision] = max(self.gemm_gflops.get(precision, 0.0), rate)

    def gflops(self, precision: str) -> float | None:
        """The ceiling of arithmetic at a precision; bf16x3 takes three products of bf16."""
        if precision == "bf16x3":
            rate = self.gemm_gflops.get("bf16")
            return None if rate is None else rate / 3
        return self.gemm_gflops.get(precision)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "read_gb_s": round(self.read_gb_s, 2),
            "gemm_gflops": {name: round(rate, 1) for name, rate in self.gemm_gflops.items()},
            "library": self.library,
        }


def _best(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _read_gb_s(threads: int) -> float:
    # The maximum, because numpy's sum is slower than memory where its loop is not vectorised.
    parts = np.array_split(np.ones(_READ_BYTES // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(np.max, parts)))
    return _READ_BYTES / seconds / 1e9


def _products(threads: int, precisions: set[str]) -> tuple[dict[str, Callable[[], object]], str]:
    if util.find_spec("torch") is None:
        square = np.ones((_SIZE, _SIZE), np.float32)
        return {"fp32": lambda: square @ square}, "numpy"
    torch = import_module("torch")
    torch.set_num_threads(threads)
    a = torch.rand(_SIZE, _SIZE)
    calls: dict[str, Callable[[], object]] = {"fp32": lambda: a @ a}
    if precisions & {"bf16", "bf16x3"}:
        half = a.to(torch.bfloat16)
        calls["bf16"] = lambda: half @ half
    if "int8" in precisions and hasattr(torch, "_int_mm"):
        small = (a * 127).to(torch.int8)
        calls["int8"] = lambda: torch._int_mm(small, small)
    return calls, "torch"
