"""Row-wise kernels: layer_norm, embed, reduce_rows, against numpy in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from kernel_memory import EPS, PANEL, Floats, Guarded, Ints, assert_same_bits, random, round_up

from tokprune_rt import _core

LEVELS = _core.isa_levels()
COLUMNS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 384)

pytestmark = pytest.mark.parametrize("level", LEVELS)


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int32)


def assert_zero_padding(dst: Guarded, rows: Any = slice(None)) -> None:
    padding = dst.array[rows, dst.columns : round_up(dst.columns)]
    assert_same_bits(padding, np.zeros_like(padding))


def layer_norm(
    level: str, src: Floats, gamma: Floats, beta: Floats, eps: float, rows: Any = None
) -> Floats:
    """Rows ``rows`` (None = all) of ``src`` normalised on poisoned memory."""
    columns = src.shape[1]
    count = len(src) if rows is None else len(rows)
    dst = Guarded(count, columns, round_up(columns) + PANEL)
    _core.kernels.layer_norm(
        level,
        Guarded.of(src, columns + 5).array,
        rows,
        dst.array,
        None,
        count,
        Guarded.of(gamma).vector,
        Guarded.of(beta).vector,
        eps,
    )
    dst.check(round_up(columns))
    assert_zero_padding(dst)
    return dst.values.copy()


def exact_layer_norm(src: Floats, gamma: Floats, beta: Floats, eps: float) -> tuple[Any, Any]:
    """The float64 result, and the error that float32 sums of this length may leave in it."""
    x = src.astype(np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    terms = src.shape[1] / 4 + 8  # of one lane, and across the lanes
    normalised = centred / deviation
    relative = EPS * terms * np.abs(x).max(axis=1, keepdims=True) / deviation
    tolerance = np.abs(gamma) * (relative * (1 + np.abs(normalised)) + EPS * 4) + EPS * np.abs(beta)
    return normalised * gamma + beta, tolerance


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_layer_norm_equals_float64(level: str, offset: float) -> None:
    for columns in COLUMNS:
        rng = np.random.default_rng(columns)
        gamma, beta = random(rng, columns), random(rng, columns)
        for size in (1e-3, 1.0, 50.0):
            src = random(rng, 5, columns, scale=size) + np.float32(offset)
            result = layer_norm(level, src, gamma, beta, 1e-5)
            exact, tolerance = exact_layer_norm(src, gamma, beta, 1e-5)
            error = np.abs(result - exact)
            assert (error <= tolerance).all(), (columns, size, (error / tolerance).max())


def test_layer_norm_of_a_constant_row_is_beta(level: str) -> None:
    for columns in (1, 16, 32):
        rng = np.random.default_rng(columns)
        gamma, beta = random(rng, columns), random(rng, columns)
        src = np.full((2, columns), 2.0, dtype=np.float32)
        assert_same_bits(layer_norm(level, src, gamma, beta, 1e-12), np.stack([beta, beta]))


def test_layer_norm_gathers_and_scatters_rows(level: str) -> None:
    for columns in COLUMNS:
        rng = np.random.default_rng(columns)
        gamma, beta = random(rng, columns), random(rng, columns)
        src = random(rng, 9, columns)
        whole = layer_norm(level, src, gamma, beta, 1e-12)
        rows = ints(8, 0, 3, 3, 5)
        assert_same_bits(layer_norm(level, src, gamma, beta, 1e-12, rows), whole[rows])
        assert_same_bits(layer_norm(level, src[4:5], gamma, beta, 1e-12), whole[4:5])

        dst = Guarded(12, columns, round_up(columns) + PANEL)
        to = ints(11, 2, 0, 7, 4)
        source = Guarded.of(src, columns + 1).array
        _core.kernels.layer_norm(level, source, rows, dst.array, to, 5, gamma, beta, 1e-12)
        dst.check(round_up(columns), to)
        assert_zero_padding(dst, to)
        assert_same_bits(dst.values[to], whole[rows])


def test_layer_norm_in_place(level: str) -> None:
    for columns in COLUMNS:
        rng = np.random.default_rng(columns)
        gamma, beta = random(rng, columns), random(rng, columns)
        src = random(rng, 4, columns)
        both = Guarded.of(src, round_up(columns) + PANEL)
        _core.kernels.layer_norm(level, both.array, None, both.array, None, 4, gamma, beta, 1e-12)
        both.check(round_up(columns))
        assert_zero_padding(both)
        assert_same_bits(both.values, layer_norm(level, src, gamma, beta, 1e-12))


@pytest.mark.parametrize("typed", [False, True])
def test_embed_adds_rows_of_the_tables(level: str, typed: bool) -> None:
    for columns in COLUMNS:
        rng = np.random.default_rng(columns)
        word, position, types = (random(rng, rows, columns) for rows in (11, 9, 2))
        word_id, position_id = ints(10, 0, 3, 3, 7, 1), ints(0, 8, 2, 3, 4, 8)
        type_id = ints(1, 0, 0, 1, 1, 0) if typed else None
        dst = Guarded(6, columns, round_up(columns) + PANEL)
        _core.kernels.embed(
            level,
            Guarded.of(word).array,
            word_id,
            Guarded.of(position).array,
            position_id,
            Guarded.of(types).array if typed else None,
            type_id,
            dst.array,
        )
        dst.check(round_up(columns))
        assert_zero_padding(dst)
        start = word[word_id] + types[type_id] if typed else word[word_id]
        # Two float32 additions in the documented order leave no room for another result.
        assert_same_bits(dst.values, start + position[position_id])


def test_reduce_rows_copies_plain_rows(level: str) -> None:
    for columns in COLUMNS:
        src = random(np.random.default_rng(columns), 9, columns)
        rows = ints(8, 0, 3, 3, 5)
        dst = Guarded(5, columns, round_up(columns) + PANEL)
        source = Guarded.of(src, columns + 3).array
        _core.kernels.reduce_rows(level, source, None, rows, None, dst.array, 5, columns)
        dst.check(round_up(columns))
        assert_zero_padding(dst)
        assert_same_bits(dst.values, src[rows])


def test_reduce_rows_compacts_in_place(level: str) -> None:
    for columns in COLUMNS:
        src = random(np.random.default_rng(columns), 9, columns)
        for rows in (ints(0, 1, 2, 3), ints(2, 5, 6, 8), ints(0, 4, 5), ints(8)):
            both = Guarded.of(src, round_up(columns) + PANEL)
            count = len(rows)
            _core.kernels.reduce_rows(
                level, both.array, None, rows, None, both.array, count, columns
            )
            both.check(round_up(columns))
            assert_zero_padding(both, slice(count))
            assert_same_bits(both.values[:count], src[rows])
            assert_same_bits(both.values[count:], src[count:])


def test_reduce_rows_sums_with_weights(level: str) -> None:
    for columns in COLUMNS:
        rng = np.random.default_rng(columns)
        src = random(rng, 9, columns)
        # Rows of one, many, no and repeated entries.
        begin = ints(0, 1, 7, 7, 9)
        column = ints(4, 0, 1, 2, 3, 5, 8, 6, 6)
        weight = random(rng, len(column))
        dst = Guarded(4, columns, round_up(columns) + PANEL)
        source = Guarded.of(src, columns + 3).array
        _core.kernels.reduce_rows(
            level, source, begin, column, Guarded.of(weight).vector, dst.array, 4, columns
        )
        dst.check(round_up(columns))
        assert_zero_padding(dst)
        terms = src[column].astype(np.float64) * weight[:, None]
        exact = np.stack([terms[b:e].sum(axis=0) for b, e in pairwise(begin)])
        limit = EPS * 7 * np.abs(src).max() * np.abs(weight).max() * 2
        np.testing.assert_allclose(dst.values, exact, rtol=0, atol=limit)
        assert_same_bits(dst.values[2], np.zeros(columns, dtype=np.float32))
