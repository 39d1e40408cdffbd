"""Arrays between canaries for the kernel tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]
Halves = NDArray[np.uint16]
Ints = NDArray[np.int32]

EPS = float(np.finfo(np.float32).eps)
PANEL = 16
BF16_DEPTH, INT8_DEPTH = 32, 64
TILE_ROWS = 16
_GUARD = 37  # odd, so that no array starts on a vector boundary by luck

# By size in bytes: a quiet NaN whose payload no kernel produces, as float32 and as bfloat16, and a
# number that shows in a sum.
_CANARY = {4: 0x7FC0_BEEF, 2: 0x7FDB, 1: 0xA5}


def round_up(n: int, unit: int = PANEL) -> int:
    return -(-n // unit) * unit


def random(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Floats:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


class Guarded:
    """A C-contiguous array [rows, stride] inside a larger buffer full of canaries.

    Reads of a neighbour poison results; writes to one are found by ``check``.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        stride: int | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.columns = columns
        self.stride = columns if stride is None else stride
        size = rows * self.stride
        width = np.dtype(dtype).itemsize
        self._canary = _CANARY[width]
        self._buffer = np.full(size + 2 * _GUARD, self._canary, dtype=f"u{width}")
        inside = self._buffer[_GUARD : _GUARD + size]
        self.array: Array = inside.view(dtype).reshape(rows, self.stride)

    @classmethod
    def of(
        cls,
        values: Any,
        stride: int | None = None,
        dtype: DTypeLike = np.float32,
        rows: int | None = None,
    ) -> Guarded:
        """``values`` [rows, columns] at the start of rows of ``stride`` elements.

        ``rows`` may ask for more of them, poisoned.
        """
        values = np.atleast_2d(np.asarray(values, dtype=dtype))
        guarded = cls(len(values) if rows is None else rows, values.shape[1], stride, dtype)
        guarded.values[: len(values)] = values
        return guarded

    @property
    def values(self) -> Array:
        return self.array[:, : self.columns]

    @property
    def vector(self) -> Array:
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
        changed = np.flatnonzero(untouched & (self._buffer != self._canary))
        assert changed.size == 0, f"wrote outside its destination at {changed - _GUARD}"


def finish(
    kind: str,
    columns: int,
    bias: Floats | None = None,
    residual: Floats | None = None,
    residual_rows: Any = None,
    row_scale: Floats | None = None,
) -> dict[str, Any]:
    """The epilogue of a product with ``columns`` columns, its operands on guarded memory."""
    epilogue: dict[str, Any] = {"kind": kind}
    if bias is not None:
        epilogue["bias"] = Guarded.of(bias).vector
    if residual is not None:
        epilogue["residual"] = Guarded.of(residual, columns + 7).array
    if residual_rows is not None:
        epilogue["residual_rows"] = np.asarray(residual_rows, dtype=np.int32)
    if row_scale is not None:
        epilogue["row_scale"] = Guarded.of(row_scale).vector
    return epilogue


def pack(matrix: Array, group: int = 1, depth: int = 1) -> Array:
    """B[k, n] as panels [ceil(n / 16), k / group, 16, group]: the packed layouts, spelt out.

    k is padded with zeros to a multiple of ``depth``, n to one of 16. A group of 1 is left out of
    the shape.
    """
    k, n = matrix.shape
    panels = round_up(n) // PANEL
    rows = round_up(k, depth)
    padded = np.zeros((rows, panels * PANEL), dtype=matrix.dtype)
    padded[:k, :n] = matrix
    split = padded.reshape(rows // group, group, panels, PANEL)
    packed = np.ascontiguousarray(split.transpose(2, 0, 3, 1))
    return packed[..., 0] if group == 1 else packed


def poisoned_panels(packed: Array, gap: int) -> Array:
    """The panels, one a row, each with ``gap`` poisoned elements after it."""
    panels, size = len(packed), int(np.prod(packed.shape[1:]))
    return Guarded.of(packed.reshape(panels, size), size + gap, packed.dtype).array


def to_bf16(values: Any) -> Halves:
    """The bits of bfloat16(x), rounded to nearest even. Finite values."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: Halves) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def assert_same_bits(actual: Any, expected: Any, message: str = "") -> None:
    actual, expected = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert actual.dtype == expected.dtype
    width = np.dtype(f"u{actual.dtype.itemsize}")
    np.testing.assert_array_equal(actual.view(width), expected.view(width), err_msg=message)
