"""The int8 product and the quantisation of its rows: exact against integers, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from kernel_memory import (
    INT8_DEPTH,
    PANEL,
    TILE_ROWS,
    Floats,
    Guarded,
    Ints,
    assert_same_bits,
    finish,
    pack,
    poisoned_panels,
    random,
    round_up,
)
from numpy.typing import NDArray

from tokprune_rt import _core

LEVELS = _core.isa_levels()
PANELS = (1, 2, 3, 5)
DEPTHS = (4, 20, 64, 128, 320, 3072)  # multiples of 4 where there are no tiles

pytestmark = pytest.mark.parametrize("level", LEVELS)


@dataclass
class Product:
    """Operands of C = (A - zero) * scale times B * b_scale; slices of them with ``part``."""

    a: NDArray[np.uint8]
    scale: Floats
    zero: Ints
    b: NDArray[np.int8]
    b_scale: Floats

    def part(self, rows: Any, columns: Any = slice(None)) -> Product:
        return Product(
            self.a[rows],
            self.scale[rows],
            self.zero[rows],
            self.b[:, columns],
            self.b_scale[columns],
        )

    def exact(self) -> Floats:
        """The contract: integers without a limit, then three float32 roundings."""
        a, b = self.a.astype(np.int64), self.b.astype(np.int64)
        sums = a @ b - self.zero.astype(np.int64)[:, None] * b.sum(axis=0)
        return sums.astype(np.float32) * (self.scale[:, None] * self.b_scale)


def most_rows(level: str) -> int:
    """One more than two register tiles; two matrix tiles lie side by side."""
    tile = 2 * TILE_ROWS if _core.kernels.has_tiles(level) else _core.kernels.gemm_rows(level)
    return 2 * tile + 1


def operands(level: str, k: int, panels: int = max(PANELS)) -> Product:
    rng = np.random.default_rng(k)
    m, n = most_rows(level), panels * PANEL
    return Product(
        rng.integers(0, 256, (m, k), dtype=np.uint8),
        np.abs(random(rng, m)),
        rng.integers(0, 256, m, dtype=np.int32),
        rng.integers(-127, 128, (k, n), dtype=np.int8),
        np.abs(random(rng, n)),
    )


def multiply(level: str, product: Product, epilogue: str = "none", **extra: Any) -> Floats:
    """One call on poisoned memory: rows up to a multiple of 16 are readable, and not zero."""
    (m, k), n = product.a.shape, product.b.shape[1]
    c = Guarded(m, n, n + 2 * PANEL)
    a = Guarded.of(product.a, k + 32, np.uint8, rows=round_up(m, TILE_ROWS))
    _core.kernels.gemm_int8(
        level,
        a.array,
        Guarded.of(product.scale).vector,
        Guarded.of(product.zero, dtype=np.int32).vector,
        poisoned_panels(pack(product.b, 4, INT8_DEPTH), 1024),
        Guarded.of(product.b_scale).vector,
        Guarded.of(product.b.sum(axis=0, dtype=np.int32), dtype=np.int32).vector,
        c.array,
        m,
        k,
        finish(epilogue, n, **extra),
    )
    c.check()
    return c.values.copy()


@pytest.mark.parametrize("k", DEPTHS)
def test_gemm_int8_equals_integers(level: str, k: int) -> None:
    if k % INT8_DEPTH and _core.kernels.has_tiles(level):
        return
    whole = operands(level, k)
    expected = whole.exact()
    for panels in PANELS:
        columns = slice(panels * PANEL)
        for m in range(1, len(whole.a) + 1):
            c = multiply(level, whole.part(slice(m), columns))
            assert_same_bits(c, expected[:m, columns], f"{m} rows, {panels} panels")


@pytest.mark.parametrize("value", [-127, 127])
@pytest.mark.parametrize("k", [3072, 65536])
def test_gemm_int8_saturates_nowhere(level: str, value: int, k: int) -> None:
    """The largest products there can be: sums of 16 bits, and of 31, would not hold them."""
    one = np.ones(2, dtype=np.float32)
    b = np.full((k, PANEL), value, dtype=np.int8)
    b[:, 1::2] *= -1
    columns = np.ones(PANEL, dtype=np.float32)
    # The second row is all zeros in disguise: its zero point takes the whole sum back.
    zero = np.array([0, 255], dtype=np.int32)
    extreme = Product(np.full((2, k), 255, dtype=np.uint8), one, zero, b, columns)
    expected = extreme.exact()
    assert abs(float(expected[0, 0])) == np.float32(255 * 127 * k)
    assert_same_bits(expected[1], np.zeros(PANEL, dtype=np.float32))
    assert_same_bits(multiply(level, extreme), expected)


@pytest.mark.parametrize("k", [64, 320])
def test_gemm_int8_rows_do_not_depend_on_the_call(level: str, k: int) -> None:
    """A row has the same bits in any number of rows, at any place, in any split of columns."""
    whole = operands(level, k)
    expected = multiply(level, whole)
    for m in range(1, len(whole.a) + 1):
        assert_same_bits(multiply(level, whole.part(slice(-m, None))), expected[-m:])
    order = np.random.default_rng(0).permutation(len(whole.a))
    assert_same_bits(multiply(level, whole.part(order)), expected[order])
    for panel in range(max(PANELS)):
        columns = slice(panel * PANEL, (panel + 1) * PANEL)
        assert_same_bits(multiply(level, whole.part(slice(None), columns)), expected[:, columns])


def test_gemm_int8_ignores_columns_that_meet_zeros(level: str) -> None:
    """The padding of k: whatever A holds there, B holds zeros."""
    whole = operands(level, 128)
    whole.b[100:] = 0
    expected = multiply(level, whole)
    whole.a[:, 100:] = 255
    assert_same_bits(multiply(level, whole), expected)


def test_gemm_int8_of_nothing(level: str) -> None:
    """No rows and no panels write nothing."""
    whole = operands(level, 64)
    assert multiply(level, whole.part(slice(0))).size == 0
    assert multiply(level, whole.part(slice(None), slice(0))).size == 0


def test_gemm_int8_linear_epilogues(level: str) -> None:
    """One rounding for each operation: no level has room for another result."""
    whole = operands(level, 320)
    rng = np.random.default_rng(2)
    m, n = len(whole.a), whole.b.shape[1]
    plain = whole.exact()
    bias, scale = random(rng, n, scale=1e4), random(rng, m)
    residual = random(rng, m + 4, n, scale=1e4)
    rows = rng.integers(0, len(residual), m)

    def finished(epilogue: str, **extra: Any) -> Floats:
        return multiply(level, whole, epilogue, **extra)

    assert_same_bits(finished("row_scale", row_scale=scale), plain * scale[:, None])
    for name in ("bias", "identity"):
        assert_same_bits(finished(name, bias=bias), plain + bias)
    for chosen in (None, rows):
        added = residual[:m] if chosen is None else residual[chosen]
        result = finished("bias_residual", bias=bias, residual=residual, residual_rows=chosen)
        assert_same_bits(result, plain + bias + added)


@pytest.mark.parametrize("activation", sorted(_core.activations()))
def test_gemm_int8_activations_are_those_of_gemm(level: str, activation: str) -> None:
    whole = operands(level, 64)
    whole.scale *= 1e-2
    bias = random(np.random.default_rng(3), whole.b.shape[1])
    expected = np.ascontiguousarray(whole.exact())
    m, n = expected.shape
    nothing = np.zeros((m, 0), np.float32), np.zeros((n // PANEL, 0, PANEL), np.float32)
    epilogue = finish(activation, n, bias)
    _core.kernels.gemm(level, *nothing, expected, m, 0, True, epilogue)
    assert_same_bits(multiply(level, whole, activation, bias=bias), expected)


# Quantisation -------------------------------------------------------------------------------------

COLUMNS = (1, 3, 4, 15, 16, 17, 63, 64, 65, 100, 384, 1000)


def quantize(level: str, src: Floats) -> tuple[NDArray[np.uint8], Floats, Ints]:
    """Values, scales and zero points of rows on poisoned memory; the padding is checked."""
    rows, columns = src.shape
    padded = round_up(columns, INT8_DEPTH)
    dst = Guarded(rows, columns, padded + 48, np.uint8)
    scale, zero = Guarded(1, rows), Guarded(1, rows, dtype=np.int32)
    source = Guarded.of(src, columns + 5).array
    _core.kernels.quantize_rows(level, source, dst.array, scale.vector, zero.vector, rows, columns)
    dst.check(padded)
    scale.check()
    zero.check()
    padding = dst.array[:, columns:padded]
    assert_same_bits(padding, np.zeros_like(padding))
    return dst.values.copy(), scale.vector.copy(), zero.vector.copy()


def expected_rows(src: Floats) -> tuple[NDArray[np.uint8], Floats, Ints]:
    """The contract in float32. Where both ends of a range round outwards, the top is clamped."""
    top = np.float32(255)
    low = np.minimum(src.min(axis=1), np.float32(0))
    with np.errstate(over="ignore"):
        span = np.maximum(src.max(axis=1), np.float32(0)) - low
    steps = np.divide(top, span, out=np.zeros_like(span), where=span > np.float32(1e-30))
    zero = np.rint(-low * steps)
    values = np.clip(np.rint(src * steps[:, None]) + zero[:, None], 0, 255)
    return values.astype(np.uint8), span / top, zero.astype(np.int32)


def rows_to_quantize(columns: int) -> Floats:
    """Random rows of many sizes and offsets, one-sided ones, and rows of one value."""
    rng = np.random.default_rng(columns)
    sizes = (1e-45, 1e-38, 1e-31, 3e-31, 1e-20, 1e-3, 1.0, 40.0, 1e30)
    rows = [random(rng, columns, scale=size) for size in sizes]
    rows += [random(rng, columns) + np.float32(offset) for offset in (-100, -3, 3, 100)]
    rows += [np.abs(random(rng, columns)), -np.abs(random(rng, columns))]
    rows += [np.maximum(random(rng, columns), 0), random(rng, columns).round()]
    rows += [np.full(columns, x, np.float32) for x in (0.0, -0.0, 2.5, -2.5, 1e38, -1e38)]
    huge = np.full(columns, 1.7e38, dtype=np.float32)
    huge[::2] *= -1
    return np.stack([*rows, huge])


def test_quantize_rows_equals_float32(level: str) -> None:
    for columns in COLUMNS:
        src = rows_to_quantize(columns)
        for actual, expected in zip(quantize(level, src), expected_rows(src), strict=True):
            assert_same_bits(actual, expected, f"{columns} columns")


def test_quantize_rows_of_halves_rounds_to_even(level: str) -> None:
    """A range of 255 makes the scale 1: every value halfway between two integers."""
    halves = np.arange(-127.5, 128, dtype=np.float32)[None]
    values, scale, zero = quantize(level, halves)
    assert (scale[0], zero[0]) == (1, 128)
    # 127.5 rounds to 128, and 128 + 128 is clamped.
    np.testing.assert_array_equal(values[0], np.minimum(np.rint(halves[0]) + 128, 255))


def test_quantize_rows_loses_at_most_half_a_step(level: str) -> None:
    for columns in COLUMNS:
        src = rows_to_quantize(columns)
        values, scale, zero = quantize(level, src)
        steps = values.astype(np.float64) - zero[:, None]
        # x * (255 / range) carries three roundings, of up to 255 steps. Next to nothing is nothing.
        limit = scale[:, None].astype(np.float64) * (0.5 + 255 * 3 * 2.0**-24)
        limit = np.maximum(limit, 1e-30)
        assert (np.abs(src - steps * scale[:, None]) <= limit).all(), columns
        assert zero.min() >= 0 and zero.max() <= 255
        # Zero itself is exact: padding and dead rectifiers cost nothing.
        assert (steps[src == 0] == 0).all()


def test_quantize_rows_of_an_infinite_range(level: str) -> None:
    """Values of zero times a scale of infinity: what follows is not a number, as in float32."""
    most = np.finfo(np.float32).max
    values, scale, zero = quantize(level, np.array([[most, -most, 1], [np.inf, 0, 1]], np.float32))
    assert not values.any() and not zero.any()
    assert not np.isfinite(scale).any()


def test_quantize_rows_with_a_value_that_is_no_number(level: str) -> None:
    """Wherever it stands, and whatever stands beside it, nothing of its row is a number."""
    for columns in (1, 3, 16, 48, 64, 65, 200):
        src = np.repeat(random(np.random.default_rng(columns), 1, columns), columns, axis=0)
        np.fill_diagonal(src, np.nan)
        _, scale, zero = quantize(level, src)
        assert np.isnan(scale).all() and not zero.any(), columns


def test_quantize_rows_do_not_depend_on_the_call(level: str) -> None:
    src = rows_to_quantize(100)
    whole = quantize(level, src)
    order = np.random.default_rng(0).permutation(len(src))
    for rows in ([3], [0, 1], order):
        for part, all_rows in zip(quantize(level, src[rows]), whole, strict=True):
            assert_same_bits(part, all_rows[rows])


def test_quantize_rows_of_nothing(level: str) -> None:
    quantize(level, np.zeros((0, 5), dtype=np.float32))
