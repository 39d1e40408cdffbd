"""Arrays between canaries for the kernel tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

EPS = float(np.finfo(np.float32).eps)
PANEL = 16
_GUARD = 37  # odd, so that no array starts on a vector boundary by luck


def round_up(n: int, unit: int = PANEL) -> int:
    return -(-n // unit) * unit


def random(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Floats:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


class Guarded:
    """A C-contiguous float32 array [rows, stride] inside a larger buffer full of NaN.

    Reads of a neighbour poison results; writes to one are found by ``check``.
    """

    def __init__(self, rows: int, columns: int, stride: int | None = None) -> None:
        self.columns = columns
        self.stride = columns if stride is None else stride
        size = rows * self.stride
        # A quiet NaN whose payload no kernel produces.
        self._buffer = np.full(size + 2 * _GUARD, 0x7FC0_BEEF, dtype=np.uint32)
        self.array: Floats = self._buffer.view(np.float32)[_GUARD : _GUARD + size].reshape(
            rows, self.stride
        )

    @classmethod
    def of(cls, values: Any, stride: int | None = None) -> Guarded:
        """``values`` [rows, columns] at the start of rows of ``stride`` elements."""
        values = np.atleast_2d(np.asarray(values, dtype=np.float32))
        guarded = cls(len(values), values.shape[1], stride)
        guarded.values[:] = values
        return guarded

    @property
    def values(self) -> Floats:
        return self.array[:, : self.columns]

    @property
    def vector(self) -> Floats:
        """The array as one contiguous run."""
        return self.array.reshape(-1)

    def check(self, written: int | None = None, rows: Any = slice(None)) -> None:
        """Nothing changed outside the first ``written`` columns (default: all) of ``rows``."""
        written = self.columns if written is None else written
        untouched = np.ones(len(self._buffer), dtype=bool)
        inside = untouched[_GUARD : len(untouched) - _GUARD].reshape(self.array.shape)
        chosen = np.zeros(len(inside), dtype=bool)
        chosen[rows] = True
        inside[chosen, :written] = False
        changed = np.flatnonzero(untouched & (self._buffer != 0x7FC0_BEEF))
        assert changed.size == 0, f"wrote outside its destination at {changed - _GUARD}"


def pack(matrix: Floats) -> Floats:
    """B[k, n] as panels [ceil(n / 16), k, 16], zero-padded: the packed layout, spelt out."""
    k, n = matrix.shape
    panels = round_up(n) // PANEL
    padded = np.zeros((k, panels * PANEL), dtype=np.float32)
    padded[:, :n] = matrix
    return np.ascontiguousarray(padded.reshape(k, panels, PANEL).transpose(1, 0, 2))


def assert_same_bits(actual: Any, expected: Any, message: str = "") -> None:
    actual, expected = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert actual.dtype == expected.dtype
    width = np.dtype(f"u{actual.dtype.itemsize}")
    np.testing.assert_array_equal(actual.view(width), expected.view(width), err_msg=message)
