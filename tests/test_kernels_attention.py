"""Packing, softmax, position bias and importance sums, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_memory import EPS, PANEL, Floats, Guarded, assert_same_bits, pack, random, round_up

from tokprune_rt import _core

LEVELS = _core.isa_levels()
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 100, 257)

pytestmark = pytest.mark.parametrize("level", LEVELS)


@pytest.mark.parametrize("k", [1, 3, 15, 16, 17, 33, 64])
def test_pack_transposed_is_the_documented_layout(level: str, k: int) -> None:
    for n in LENGTHS:
        src = random(np.random.default_rng(n), n, k)
        panels = round_up(n) // PANEL
        dst = Guarded(panels * k, PANEL)
        _core.kernels.pack_transposed(level, Guarded.of(src, k + 3).array, dst.array, n, k)
        dst.check()
        assert_same_bits(dst.array.reshape(panels, k, PANEL), pack(src.T))


@pytest.mark.parametrize("k", [1, 3, 16, 33])
def test_pack_rows_is_the_documented_layout(level: str, k: int) -> None:
    for n in LENGTHS:
        src = random(np.random.default_rng(n), k, n)
        panels = round_up(n) // PANEL
        dst = Guarded(panels * k, PANEL)
        _core.kernels.pack_rows(level, Guarded.of(src, n + 3).array, dst.array, n, k)
        dst.check()
        assert_same_bits(dst.array.reshape(panels, k, PANEL), pack(src))


def softmax(level: str, scores: Floats, scale: float) -> tuple[Floats, Floats]:
    """Unnormalised probabilities and inverse sums of one call on poisoned memory."""
    rows, n = scores.shape
    s = Guarded.of(scores, round_up(n) + PANEL)
    inv_sum = Guarded(1, rows)
    _core.kernels.softmax(level, s.array, n, scale, inv_sum.vector)
    s.check(round_up(n))
    inv_sum.check()
    padding = s.array[:, n : round_up(n)]
    assert_same_bits(padding, np.zeros_like(padding))
    return s.values.copy(), inv_sum.vector.copy()


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_softmax_equals_float64(level: str, scale: float, size: float) -> None:
    for n in LENGTHS:
        scores = random(np.random.default_rng(n), 5, n, scale=size)
        p, inv_sum = softmax(level, scores, scale)
        scaled = scores.astype(np.float64) * scale
        exact = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        # The argument is rounded twice and exp is good to two units; it saturates at 2^-126.
        relative = EPS * (2 * np.abs(scaled).max() + 4)
        np.testing.assert_allclose(p, exact, rtol=relative, atol=2.0**-125)
        sums = p.astype(np.float64).sum(axis=1)
        np.testing.assert_allclose(inv_sum * sums, 1.0, rtol=0, atol=EPS * (n + 1))


@pytest.mark.parametrize("magnitude", [1e3, 1e10, 1e30])
def test_softmax_of_huge_scores(level: str, magnitude: float) -> None:
    """Differences beyond the range of exp: the largest (also a repeated one) takes everything."""
    for n in LENGTHS:
        for sign in (1.0, -1.0):
            rng = np.random.default_rng(n)
            steps = rng.integers(1, 8, (5, n))
            scores = (sign * magnitude * steps).astype(np.float32)
            p, inv_sum = softmax(level, scores, 1.0)
            best = scores == scores.max(axis=1, keepdims=True)
            assert (p[best] == 1.0).all()
            assert (p[~best] <= 2.0**-125).all()
            np.testing.assert_allclose(inv_sum, 1.0 / best.sum(axis=1), rtol=2 * EPS)


def test_softmax_of_one_score_is_one(level: str) -> None:
    for value in (0.0, -0.0, 1e-40, 3.0, -1e38, 1e38):
        p, inv_sum = softmax(level, np.array([[value]], dtype=np.float32), 1.0)
        assert p[0, 0] == 1.0
        assert inv_sum[0] == 1.0


def test_softmax_rows_do_not_depend_on_the_call(level: str) -> None:
    for n in LENGTHS:
        scores = random(np.random.default_rng(n), 6, n, scale=4)
        p, inv_sum = softmax(level, scores, 0.3)
        for rows in (1, 2, 5):
            part, part_sum = softmax(level, scores[-rows:], 0.3)
            assert_same_bits(part, p[-rows:])
            assert_same_bits(part_sum, inv_sum[-rows:])


def test_relative_bias_equals_float64(level: str) -> None:
    rng = np.random.default_rng(0)
    longest = 300
    distances = random(rng, 2 * longest - 1)
    for n in LENGTHS:
        rows = 5
        # Positions of surviving tokens: ascending with gaps, up to both ends of the table.
        keys = np.sort(rng.choice(longest, n, replace=False)).astype(np.int32)
        queries = np.array([0, longest - 1, *rng.choice(longest, rows - 2)], dtype=np.int32)
        scores = random(rng, rows, n)
        s = Guarded.of(scores, round_up(n) + PANEL)
        table = Guarded.of(distances).vector
        _core.kernels.relative_bias(level, s.array, n, 0.125, table, queries, keys)
        s.check(round_up(n))
        bias = distances.astype(np.float64)[keys[None] - queries[:, None] + longest - 1]
        exact = scores * np.float64(0.125) + bias
        np.testing.assert_allclose(s.values, exact, rtol=0, atol=EPS * np.abs(exact).max())


def test_key_bias_equals_float64(level: str) -> None:
    rng = np.random.default_rng(0)
    for n in LENGTHS:
        scores, bias = random(rng, 5, n), random(rng, n)
        s = Guarded.of(scores, round_up(n) + PANEL)
        _core.kernels.key_bias(level, s.array, n, 0.125, Guarded.of(bias).vector)
        s.check(round_up(n))
        exact = scores * np.float64(0.125) + bias
        np.testing.assert_allclose(s.values, exact, rtol=0, atol=EPS * np.abs(exact).max())
        plain = Guarded.of(scores, round_up(n) + PANEL)
        _core.kernels.key_bias(level, plain.array, n, 0.3, Guarded.of(np.zeros_like(bias)).vector)
        assert_same_bits(plain.values, scores * np.float32(0.3))


def column_sum(level: str, p: Floats, weight: Floats, start: Floats) -> Floats:
    n = p.shape[1]
    block = Guarded.of(p, round_up(n) + PANEL)
    acc = Guarded.of(start, round_up(n))
    _core.kernels.column_sum(level, block.array, n, Guarded.of(weight).vector, acc.vector)
    acc.check(round_up(n))
    block.check()
    assert_same_bits(block.values, p)
    return acc.values[0].copy()


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 24])
def test_column_sum_equals_float64(level: str, rows: int) -> None:
    for n in LENGTHS:
        rng = np.random.default_rng(n)
        p, weight, start = random(rng, rows, n), random(rng, rows), random(rng, n)
        result = column_sum(level, p, weight, start)
        exact = start + weight.astype(np.float64) @ p.astype(np.float64)
        largest = np.abs(weight).max(initial=0) * np.abs(p).max(initial=0)
        limit = EPS * (rows + 1) * 2 * (largest + np.abs(start).max())
        np.testing.assert_allclose(result, exact, rtol=0, atol=limit)


def test_column_sum_continues_over_split_rows(level: str) -> None:
    """The order is fixed: blocks of queries one after the other give the bits of one block."""
    for n in LENGTHS:
        rng = np.random.default_rng(n)
        p, weight, start = random(rng, 24, n), random(rng, 24), random(rng, n)
        whole = column_sum(level, p, weight, start)
        for cut in (1, 5, 23):
            first = column_sum(level, p[:cut], weight[:cut], start)
            assert_same_bits(column_sum(level, p[cut:], weight[cut:], first), whole)
        narrow = column_sum(level, p[:, : n // 2 + 1], weight, start[: n // 2 + 1])
        assert_same_bits(narrow, whole[: n // 2 + 1])


def entropy(level: str, scores: Floats, scale: float) -> tuple[Floats, Floats]:
    """Terms and their row sums, from the scores and what softmax makes of them."""
    rows, n = scores.shape
    p, inv_sum = softmax(level, scores, scale)
    block = Guarded.of(p, round_up(n) + PANEL)
    t = Guarded.of(scores, round_up(n) + PANEL)
    inverse, log_sum, row_sum = Guarded.of(inv_sum), Guarded.of(-np.log(inv_sum)), Guarded(1, rows)
    _core.kernels.entropy(
        level, block.array, t.array, n, scale, inverse.vector, log_sum.vector, row_sum.vector
    )
    t.check(round_up(n))
    block.check()
    row_sum.check()
    assert_same_bits(block.values, p)
    padding = t.array[:, n : round_up(n)]
    assert_same_bits(padding, np.zeros_like(padding))
    return t.values.copy(), row_sum.vector.copy()


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_entropy_equals_float64(level: str, scale: float, size: float) -> None:
    for n in LENGTHS:
        scores = random(np.random.default_rng(n), 5, n, scale=size)
        terms, sums = entropy(level, scores, scale)
        z = scores.astype(np.float64) * scale
        z -= z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        exact = -np.exp(log_p) * log_p
        # A term changes by |1 + ln A| A times the error of ln A, which grows with the scores.
        error = EPS * (2 * np.abs(scores).max() * scale + 8)
        limit = error * np.exp(log_p) * (2 + np.abs(log_p)) + 2e-36
        assert (np.abs(terms - exact) <= limit).all()
        assert (terms >= 0).all()
        assert (np.abs(sums - exact.sum(axis=1)) <= limit.sum(axis=1) + EPS * n * sums).all()
        if size == 0.01:
            np.testing.assert_allclose(sums, np.log(n), rtol=1e-3, atol=1e-6)


def test_entropy_of_certainty_is_zero(level: str) -> None:
    for n in LENGTHS:
        scores = np.full((2, n), -1e30, dtype=np.float32)
        scores[:, n // 2] = 1e30
        terms, sums = entropy(level, scores, 1.0)
        assert terms.max() <= 1e-35 and (sums <= n * 1e-35).all()


def test_entropy_rows_do_not_depend_on_the_call(level: str) -> None:
    for n in LENGTHS:
        scores = random(np.random.default_rng(n), 6, n, scale=4)
        terms, sums = entropy(level, scores, 0.3)
        for rows in (1, 2, 5):
            part, part_sums = entropy(level, scores[-rows:], 0.3)
            assert_same_bits(part, terms[-rows:])
            assert_same_bits(part_sums, sums[-rows:])
