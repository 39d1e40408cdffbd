"""Speed of this package next to other engines: same weights, same texts, same threads.

Every result is compared with PyTorch's in fp32 before it is timed; the engines then take turns
inside one process. Engines that are not installed are left out and listed.
"""

from __future__ import annotations

from tokprune_rt.bench.models import SHAPES
from tokprune_rt.bench.peers import PEERS
from tokprune_rt.bench.precision import PRECISIONS
from tokprune_rt.bench.report import BenchReport, BenchRow
from tokprune_rt.bench.runner import LIMIT_S, ROUNDS, run_bench
from tokprune_rt.bench.verify import VerificationError
from tokprune_rt.bench.workloads import ALL, DEFAULT_WORKLOADS, MIXED, UNIFORM

__all__ = [
    "ALL",
    "DEFAULT_WORKLOADS",
    "LIMIT_S",
    "MIXED",
    "PEERS",
    "PRECISIONS",
    "ROUNDS",
    "SHAPES",
    "UNIFORM",
    "BenchReport",
    "BenchRow",
    "VerificationError",
    "run_bench",
]
