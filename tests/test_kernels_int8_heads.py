"""Rounding keys, values and probabilities for int8 attention: the bits that the contract says."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_memory import (
    INT8_DEPTH,
    PANEL,
    Floats,
    Guarded,
    Ints,
    assert_same_bits,
    pack,
    random,
    round_up,
)
from numpy.typing import NDArray

from tokprune_rt import _core

LEVELS = _core.isa_levels()
# Around the groups of four that lie side by side, and the depth of tiles.
SIZES = (1, 2, 3, 4, 5, 8, 30, 32, 63, 64, 65, 100)

pytestmark = pytest.mark.parametrize("level", LEVELS)


def panel_of(level: str, src: Floats, depth: int) -> tuple[NDArray[np.int8], Floats, Ints]:
    """The panel [depth / 4, 16, 4], scales and sums, on poisoned memory."""
    k, n = src.shape
    dst = Guarded(depth // 4, 4 * PANEL, dtype=np.int8)
    scale, total = Guarded(1, PANEL), Guarded(1, PANEL, dtype=np.int32)
    source = Guarded.of(src, n + 5).array
    _core.kernels.quantize_panel(level, source, dst.array, scale.vector, total.vector, k, n, depth)
    for array in (dst, scale, total):
        array.check()
    return dst.values.reshape(-1, PANEL, 4).copy(), scale.vector.copy(), total.vector.copy()


def expected_panel(src: Floats, depth: int) -> tuple[NDArray[np.int8], Floats, Ints]:
    top = np.zeros(PANEL, np.float32)
    top[: src.shape[1]] = np.abs(src).max(axis=0)
    most = np.float32(127)
    steps = np.divide(most, top, out=np.zeros_like(top), where=top > np.float32(1e-30))
    values = np.zeros((depth, PANEL), np.int8)
    values[: len(src), : src.shape[1]] = np.rint(src * steps[: src.shape[1]])
    (panel,) = pack(values, 4, depth)
    return panel.reshape(-1, PANEL, 4), top / most, values.sum(axis=0, dtype=np.int32)


def columns(k: int, n: int) -> Floats:
    """Columns of many sizes, a one-sided one, and where there is room one of zeros."""
    src = random(np.random.default_rng(k * PANEL + n), k, n)
    src *= np.float32(10.0) ** np.linspace(-33, 20, n, dtype=np.float32)
    src[:, -1] = np.abs(src[:, -1])
    src[:, 1:2] = 0
    return src


@pytest.mark.parametrize("n", [1, 3, 4, 8, 15, 16])
def test_quantize_panel_equals_float32(level: str, n: int) -> None:
    for k in SIZES:
        src = columns(k, n)
        for depth in (round_up(k, 4), round_up(k, INT8_DEPTH)):
            found, expected = panel_of(level, src, depth), expected_panel(src, depth)
            for actual, wanted in zip(found, expected, strict=True):
                assert_same_bits(actual, wanted, f"{k} x {n}, depth {depth}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantize_panel_with_a_value_that_is_no_number(level: str, value: float) -> None:
    """Wherever it stands, nothing of its column is a number, and the others are as without it."""
    for row in range(9):
        src = random(np.random.default_rng(row), 9, PANEL)
        sound = expected_panel(src, 12)
        src[row, ::3] = value
        panel, scale, total = panel_of(level, src, 12)
        assert np.isnan(scale[::3]).all() and not total[::3].any()
        for at in (1, 2):
            assert_same_bits(panel[:, at::3], sound[0][:, at::3])
            assert_same_bits(scale[at::3], sound[1][at::3])
            assert_same_bits(total[at::3], sound[2][at::3])


def test_quantize_panel_rounds_ties_to_even(level: str) -> None:
    src = np.arange(-126.5, 127, dtype=np.float32)[:, None].repeat(PANEL, 1)
    src[0] = 127
    panel, scale, _ = panel_of(level, src, round_up(len(src), 4))
    assert (scale == 1).all()
    values = panel.transpose(0, 2, 1).reshape(-1, PANEL)[: len(src)]
    np.testing.assert_array_equal(values, np.rint(src))


def probabilities(cols: int) -> Floats:
    """Rows like those of a softmax before its division: peaks, tails, all alike."""
    rng = np.random.default_rng(cols)
    rows = [np.exp(random(rng, cols, scale=size)) for size in (0.0, 0.5, 1.0, 3.0, 8.0)]
    rows += [np.full(cols, x / 255) for x in (0.0, 0.1, 0.5, 1.5, 254.5)]
    return np.stack([(row / max(1.0, row.max())).astype(np.float32) for row in rows])


def rounded_probabilities(level: str, src: Floats) -> NDArray[np.uint8]:
    rows, cols = src.shape
    padded = round_up(cols)
    source = Guarded(rows, padded, padded + 32)
    source.values[:] = 0
    source.values[:, :cols] = src
    width = round_up(cols, INT8_DEPTH)
    dst = Guarded(rows, width, dtype=np.uint8)
    _core.kernels.quantize_probabilities(level, source.array, dst.array, rows, cols)
    dst.check()
    assert not dst.values[:, cols:].any()
    return dst.values[:, :cols].copy()


@pytest.mark.parametrize("cols", [1, 15, 16, 17, 48, 64, 65, 500])
def test_quantize_probabilities_equals_float32(level: str, cols: int) -> None:
    src = probabilities(cols)
    wide = np.zeros((len(src), round_up(cols)), np.float32)
    wide[:, :cols] = src
    expected = np.zeros_like(wide)
    rest = np.zeros((len(src), PANEL), np.float32)
    for j in range(0, wide.shape[1], PANEL):
        x = wide[:, j : j + PANEL] * np.float32(255) + rest
        expected[:, j : j + PANEL] = np.rint(x)
        rest = x - np.rint(x)
    expected = np.clip(expected, 0, 255).astype(np.uint8)
    assert_same_bits(rounded_probabilities(level, src), expected[:, :cols])


def test_quantize_probabilities_keeps_what_many_small_ones_add_up_to(level: str) -> None:
    """0.1 of a step everywhere: each for itself would be nothing."""
    src = np.full((5, 512), 0.1 / 255, np.float32)
    total = rounded_probabilities(level, src).sum(axis=1)
    assert (np.abs(total - 51.2) <= PANEL / 2).all()


def test_quantize_probabilities_of_a_row_are_its_own(level: str) -> None:
    src = probabilities(100)
    whole = rounded_probabilities(level, src)
    for rows in ([3], [0, 1], [4, 3, 2, 1, 0], list(range(7))):
        assert_same_bits(rounded_probabilities(level, src[rows]), whole[rows])
