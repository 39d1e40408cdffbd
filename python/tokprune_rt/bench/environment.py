"""Where the numbers come from."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from tokprune_rt import __version__
from tokprune_rt.bench.cpu import cpu_model
from tokprune_rt.bench.peers import versions


def load_average() -> float:
    """Runnable threads of the last minute, of all processes."""
    return round(os.getloadavg()[0], 2)


def describe(threads: int, isa: str) -> dict[str, Any]:
    """Machine, settings and versions, as JSON values."""
    from tokprune_rt import _core

    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": threads,
        "isa": isa,
        "isa_levels": _core.isa_levels(),
        "system": platform.platform(terse=True),
        "load_average_at_start": load_average(),
        "versions": {
            "tokprune_rt": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            **versions(),
        },
    }
