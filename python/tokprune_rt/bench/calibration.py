"""What engines with static quantization are calibrated on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.bench.models import REAL_MODEL
from tokprune_rt.bench.peers.base import Calibration
from tokprune_rt.bench.workloads import mixed_workload, uniform_workload
from tokprune_rt.loader.resolve import find_package

_COUNT = 64
# Of the inputs, so that nothing is calibrated on what it is timed with.
_SEED = 9173


def calibration_for(folder: Path) -> Calibration:
    """Documents for real weights, random ids for random ones; the seed is none that is timed."""
    if folder == find_package(REAL_MODEL):
        version = platform.python_version()
        return Calibration(f"{_COUNT} documents of Python {version}", _documents)
    return Calibration(f"{_COUNT} sequences of 64 random ids", _random)


def _documents() -> Sequence[NDArray[np.int32]]:
    return mixed_workload(f"mixed{_COUNT}", _SEED).sequences


def _random() -> Sequence[NDArray[np.int32]]:
    return uniform_workload(f"{_COUNT}x64", _SEED).sequences
