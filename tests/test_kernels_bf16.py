"""Products with bfloat16 weights, and those with bfloat16 on both sides."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from kernel_memory import (
    BF16_DEPTH,
    EPS,
    PANEL,
    TILE_ROWS,
    Floats,
    Guarded,
    Halves,
    assert_same_bits,
    finish,
    from_bf16,
    pack,
    poisoned_panels,
    random,
    round_up,
    to_bf16,
)

from tokprune_rt import _core

LEVELS = _core.isa_levels()
# Levels with bfloat16 products, and whether they are given low terms.
WITH_BF16: list[Any] = [
    (level, three_terms)
    for level in LEVELS
    for three_terms in (False, True)
    if _core.kernels.has_bf16(level) and (_core.kernels.has_tiles(level) or not three_terms)
]
PANELS = (1, 2, 3, 5)

every_level = pytest.mark.parametrize("level", LEVELS)
every_bf16_product = pytest.mark.parametrize(("level", "three_terms"), WITH_BF16)
levels_with_bf16 = pytest.mark.parametrize("level", sorted({level for level, _ in WITH_BF16}))


def rounded(values: Floats) -> Floats:
    return from_bf16(to_bf16(values))


def packed(b: Floats) -> Halves:
    return poisoned_panels(pack(to_bf16(b), 2, BF16_DEPTH), 96)


def test_rounding_of_this_test() -> None:
    """Ties go to even; what is between goes to the nearer one."""
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20], dtype=np.float32)
    np.testing.assert_array_equal(rounded(ties), [1, 1 + 2**-6, -1, 1 + 2**-7])


# float32 rows, bfloat16 weights: every level ------------------------------------------------------


def multiply(
    level: str,
    a: Floats,
    b: Floats,
    *,
    start: Floats | None = None,
    epilogue: str = "none",
    **extra: Any,
) -> Floats:
    """One call on poisoned memory; ``start`` is what C holds before, and asks to accumulate."""
    (m, k), n = a.shape, b.shape[1]
    c = Guarded(m, n, n + 2 * PANEL)
    if start is not None:
        c.values[:] = start
    source, end = Guarded.of(a, k + 5).array, finish(epilogue, n, **extra)
    _core.kernels.gemm_bf16_weight(level, source, packed(b), c.array, m, k, start is not None, end)
    c.check()
    return c.values.copy()


def operands(level: str, k: int, panels: int = max(PANELS)) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(k)
    m = 2 * _core.kernels.gemm_rows(level) + 1
    return random(rng, m, k), random(rng, k, panels * PANEL)


@every_level
@pytest.mark.parametrize("k", [1, 2, 3, 32, 65, 300])
def test_gemm_bf16_weight_equals_float64(level: str, k: int) -> None:
    a, b = operands(level, k)
    exact = a.astype(np.float64) @ rounded(b).astype(np.float64)
    tolerance = EPS * (k + 1) * np.abs(a).max() * np.abs(b).max() * 2
    for panels in PANELS:
        n = panels * PANEL
        for m in range(1, len(a) + 1):
            c = multiply(level, a[:m], b[:, :n])
            np.testing.assert_allclose(c, exact[:m, :n], rtol=0, atol=tolerance)


@every_level
@pytest.mark.parametrize("k", [1, 3, 65, 300])
def test_gemm_bf16_weight_is_gemm_on_the_rounded_weights(level: str, k: int) -> None:
    """Widening is exact and the chain of sums is gemm's: the same bits, epilogues included."""
    a, b = operands(level, k)
    m, n = len(a), b.shape[1]
    rng = np.random.default_rng(1)
    bias, scale = random(rng, n), random(rng, m)
    residual = random(rng, m, n)
    ends: list[dict[str, Any]] = [
        finish("none", n),
        finish("row_scale", n, row_scale=scale),
        finish("bias_residual", n, bias, residual, rng.permutation(m)),
        *(finish(name, n, bias) for name in ("bias", *_core.activations())),
    ]
    for end in ends:
        expected, actual = np.zeros((m, n), np.float32), np.zeros((m, n), np.float32)
        _core.kernels.gemm(level, a, pack(rounded(b)), expected, m, k, False, end)
        _core.kernels.gemm_bf16_weight(level, a, packed(b), actual, m, k, False, end)
        assert_same_bits(actual, expected, end["kind"])


@every_level
@pytest.mark.parametrize("k", [3, 65, 300])
def test_gemm_bf16_weight_rows_do_not_depend_on_the_call(level: str, k: int) -> None:
    """A row has the same bits in any number of rows, at any place, in any split of columns."""
    a, b = operands(level, k)
    whole = multiply(level, a, b)
    for m in range(1, len(a) + 1):
        assert_same_bits(multiply(level, a[:m], b), whole[:m])
        assert_same_bits(multiply(level, a[-m:], b), whole[-m:])
    order = np.random.default_rng(0).permutation(len(a))
    assert_same_bits(multiply(level, a[order], b), whole[order])
    for panel in range(max(PANELS)):
        columns = slice(panel * PANEL, (panel + 1) * PANEL)
        assert_same_bits(multiply(level, a, b[:, columns]), whole[:, columns])


@every_level
@pytest.mark.parametrize("k", [4, 17, 64, 301])
def test_gemm_bf16_weight_accumulates_an_even_split_bit_for_bit(level: str, k: int) -> None:
    a, b = operands(level, k)
    for panels in PANELS:
        n = panels * PANEL
        whole = multiply(level, a, b[:, :n])
        for cuts in ([2], [k // 4 * 2], [(k - 1) // 2 * 2], sorted({2, k // 6 * 2, k // 4 * 2})):
            bounds = [0, *(c for c in cuts if 0 < c < k), k]
            part = multiply(level, a[:, : bounds[1]], b[: bounds[1], :n])
            for begin, end in pairwise(bounds[1:]):
                part = multiply(level, a[:, begin:end], b[begin:end, :n], start=part)
            assert_same_bits(part, whole, f"cut at {cuts}")


@every_level
def test_gemm_bf16_weight_of_nothing(level: str) -> None:
    """k = 0 gives zeros (or keeps C); no rows and no panels write nothing."""
    empty, b = np.zeros((3, 0), dtype=np.float32), np.zeros((0, PANEL), dtype=np.float32)
    start = random(np.random.default_rng(1), 3, PANEL)
    assert_same_bits(multiply(level, empty, b), np.zeros_like(start))
    assert_same_bits(multiply(level, empty, b, start=start), start)
    assert multiply(level, np.zeros((0, 4), np.float32), np.ones((4, 16), np.float32)).size == 0
    assert multiply(level, np.ones((2, 4), np.float32), np.zeros((4, 0), np.float32)).size == 0


# bfloat16 on both sides: levels with such products -----------------------------------------------
# tests/native/tile_kernels.cpp runs the same kernels on emulated tiles everywhere.


def split_terms(values: Floats) -> tuple[Floats, Floats]:
    """x as the sum of two bfloat16 numbers, and what that leaves out."""
    high = rounded(values)
    return high, rounded(values - high)


def multiply_bf16(
    level: str, a: Floats, b: Floats, *, three_terms: bool, epilogue: str = "none", **extra: Any
) -> Floats:
    """One call on poisoned memory; with ``three_terms``, the low terms of A and B take part."""
    (m, k), n = a.shape, b.shape[1]
    assert k % BF16_DEPTH == 0

    def rows(values: Floats) -> Halves:
        return Guarded.of(to_bf16(values), k + 32, np.uint16, round_up(m, TILE_ROWS)).array

    c = Guarded(m, n, n + 2 * PANEL)
    low = three_terms
    _core.kernels.gemm_bf16(
        level,
        rows(a),
        rows(a - rounded(a)) if low else None,
        packed(b),
        packed(b - rounded(b)) if low else None,
        c.array,
        m,
        k,
        finish(epilogue, n, **extra),
    )
    c.check()
    return c.values.copy()


def bf16_operands(k: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(k)
    return random(rng, 4 * TILE_ROWS + 1, k), random(rng, k, max(PANELS) * PANEL)


@every_bf16_product
@pytest.mark.parametrize("k", [32, 96, 320, 3072])
def test_gemm_bf16_equals_float64(level: str, k: int, three_terms: bool) -> None:
    a, b = bf16_operands(k)
    wide_a, wide_b = (x.astype(np.float64) for x in (a, b))
    if not three_terms:
        wide_a, wide_b = (rounded(x).astype(np.float64) for x in (a, b))
    exact, size = wide_a @ wide_b, np.abs(wide_a) @ np.abs(wide_b)
    # Tiles sum 32 products at a time, vectors two; three terms lose 2^-16 of either operand.
    roundings = 17 + 3 * k / BF16_DEPTH if _core.kernels.has_tiles(level) else k
    limit = size * (EPS * roundings + (3 * 2.0**-16 if three_terms else 0))
    for panels in PANELS:
        n = panels * PANEL
        for m in range(1, len(a) + 1):
            c = multiply_bf16(level, a[:m], b[:, :n], three_terms=three_terms)
            assert (np.abs(c - exact[:m, :n]) <= limit[:m, :n]).all(), (m, panels)


@every_bf16_product
def test_gemm_bf16_rows_do_not_depend_on_the_call(level: str, three_terms: bool) -> None:
    a, b = bf16_operands(96)
    whole = multiply_bf16(level, a, b, three_terms=three_terms)
    for m in range(1, len(a) + 1):
        part = multiply_bf16(level, a[-m:], b, three_terms=three_terms)
        assert_same_bits(part, whole[-m:])
    order = np.random.default_rng(0).permutation(len(a))
    assert_same_bits(multiply_bf16(level, a[order], b, three_terms=three_terms), whole[order])
    for panel in range(max(PANELS)):
        columns = slice(panel * PANEL, (panel + 1) * PANEL)
        part = multiply_bf16(level, a, b[:, columns], three_terms=three_terms)
        assert_same_bits(part, whole[:, columns])


@every_bf16_product
def test_gemm_bf16_epilogues_are_those_of_gemm(level: str, three_terms: bool) -> None:
    a, b = bf16_operands(64)
    rng = np.random.default_rng(4)
    m, n = len(a), b.shape[1]
    bias, scale, residual = random(rng, n), random(rng, m), random(rng, m, n)
    plain = multiply_bf16(level, a, b, three_terms=three_terms)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("row_scale", {"row_scale": scale}),
        ("bias_residual", {"bias": bias, "residual": residual}),
        *((name, {"bias": bias}) for name in ("bias", *_core.activations())),
    ]
    nothing = np.zeros((m, 0), np.float32), np.zeros((n // PANEL, 0, PANEL), np.float32)
    for kind, extra in cases:
        expected = plain.copy()
        _core.kernels.gemm(level, *nothing, expected, m, 0, True, finish(kind, n, **extra))
        actual = multiply_bf16(level, a, b, three_terms=three_terms, epilogue=kind, **extra)
        assert_same_bits(actual, expected, kind)


@levels_with_bf16
@pytest.mark.parametrize("with_low", [False, True])
def test_round_rows_to_nearest_even(level: str, with_low: bool) -> None:
    for columns in (1, 15, 16, 17, 31, 32, 33, 64, 100, 384):
        src = random(np.random.default_rng(columns), 3, columns)
        # Halfway between two bfloat16 numbers: both terms are exact, the first is the even one.
        src[0] = 1 + (2 * np.arange(columns) % 100 + 1) * np.float32(2**-8)
        padded = round_up(columns, BF16_DEPTH)
        high, low = (Guarded(3, columns, padded + 48, np.uint16) for _ in range(2))
        source = Guarded.of(src, columns + 5).array
        low_rows = low.array if with_low else None
        _core.kernels.round_rows(level, source, high.array, low_rows, 3, columns)
        terms = split_terms(src)
        for dst, term in zip((high, low)[: 1 + with_low], terms, strict=False):
            dst.check(padded)
            assert_same_bits(dst.values, to_bf16(term))
            padding = dst.array[:, columns:padded]
            assert_same_bits(padding, np.zeros_like(padding))
        if not with_low:
            low.check(0)
