"""Giving back memory that the C library cannot use again."""

from __future__ import annotations

import ctypes
import time

# Seconds between two times; pages that are given back cost a little when they are taken again.
_PAUSE = 3.0


class Trimming:
    """Gives free memory back to the system now and then.

    PyTorch asks for aligned blocks. glibc finds no place for one where another of the same size was
    freed (its bug 14581), so that a heap of blocks below 32 MB grows by gigabytes. Does nothing
    with another C library.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._at = time.monotonic()

    def step(self) -> None:
        """After a step or batch."""
        if self._trim is not None and time.monotonic() - self._at > _PAUSE:
            self._trim(0)
            self._at = time.monotonic()
