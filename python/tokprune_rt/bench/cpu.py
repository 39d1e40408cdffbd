"""What the system says about the processor."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


def _field(*names: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return None


def cpu_model() -> str:
    """Name of the processor, as the system gives it."""
    found = _field("model name", "Model", "Hardware")
    return found or platform.processor() or platform.machine()


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Names of its instruction sets, as the system gives them; empty where it does not."""
    return frozenset((_field("flags", "Features") or "").split())
