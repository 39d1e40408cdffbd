"""The matrix product on packed panels and its epilogues, against numpy in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from kernel_memory import EPS, PANEL, Floats, Guarded, assert_same_bits, finish, pack, random

from tokprune_rt import _core

LEVELS = _core.isa_levels()
PANELS = (1, 2, 3, 5)
ACTIVATIONS = _core.activations()

pytestmark = pytest.mark.parametrize("level", LEVELS)


def multiply(
    level: str,
    a: Floats,
    b: Floats,
    *,
    start: Floats | None = None,
    epilogue: str = "none",
    bias: Floats | None = None,
    residual: Floats | None = None,
    residual_rows: Any = None,
    row_scale: Floats | None = None,
) -> Floats:
    """One call on poisoned memory; ``start`` is what C holds before, and asks to accumulate."""
    (m, k), n = a.shape, b.shape[1]
    c = Guarded(m, n, n + 2 * PANEL)
    if start is not None:
        c.values[:] = start
    panels = np.full((n // PANEL, k + 3, PANEL), np.nan, dtype=np.float32)
    panels[:, :k] = pack(b)
    _core.kernels.gemm(
        level,
        Guarded.of(a, k + 5).array,
        panels,
        c.array,
        m,
        k,
        start is not None,
        finish(epilogue, n, bias, residual, residual_rows, row_scale),
    )
    c.check()
    return c.values.copy()


def operands(level: str, k: int, panels: int = max(PANELS)) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(k)
    m = 2 * _core.kernels.gemm_rows(level) + 1
    return random(rng, m, k), random(rng, k, panels * PANEL)


@pytest.mark.parametrize("k", [1, 3, 16, 65, 300])
def test_gemm_equals_float64(level: str, k: int) -> None:
    a, b = operands(level, k)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    tolerance = EPS * (k + 1) * np.abs(a).max() * np.abs(b).max() * 2
    for panels in PANELS:
        n = panels * PANEL
        for m in range(1, len(a) + 1):
            c = multiply(level, a[:m], b[:, :n])
            np.testing.assert_allclose(c, exact[:m, :n], rtol=0, atol=tolerance)


@pytest.mark.parametrize("k", [1, 3, 16, 65, 300])
def test_gemm_rows_do_not_depend_on_the_call(level: str, k: int) -> None:
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


@pytest.mark.parametrize("k", [3, 16, 65, 300])
def test_gemm_accumulates_a_split_k_bit_for_bit(level: str, k: int) -> None:
    a, b = operands(level, k)
    for panels in PANELS:
        n = panels * PANEL
        whole = multiply(level, a, b[:, :n])
        for cuts in ([1], [k // 2], [k - 1], sorted({1, k // 3, k // 2})):
            bounds = [0, *(c for c in cuts if 0 < c < k), k]
            part = multiply(level, a[:, : bounds[1]], b[: bounds[1], :n])
            for begin, end in pairwise(bounds[1:]):
                part = multiply(level, a[:, begin:end], b[begin:end, :n], start=part)
            assert_same_bits(part, whole)


def test_gemm_of_nothing(level: str) -> None:
    """k = 0 gives zeros (or keeps C); no rows and no panels write nothing."""
    empty, b = np.zeros((3, 0), dtype=np.float32), np.zeros((0, PANEL), dtype=np.float32)
    start = random(np.random.default_rng(1), 3, PANEL)
    assert_same_bits(multiply(level, empty, b), np.zeros_like(start))
    assert_same_bits(multiply(level, empty, b, start=start), start)
    assert multiply(level, np.zeros((0, 4), np.float32), np.ones((4, 16), np.float32)).size == 0
    assert multiply(level, np.ones((2, 4), np.float32), np.zeros((4, 0), np.float32)).size == 0


@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm_linear_epilogues(level: str, accumulate: bool) -> None:
    """row_scale, bias and bias_residual apply to exactly the sums that `none` leaves."""
    a, b = operands(level, 65)
    rng = np.random.default_rng(2)
    n = b.shape[1]
    bias, scale = random(rng, n), random(rng, len(a))
    residual = random(rng, len(a) + 4, n, scale=10)
    rows = rng.integers(0, len(residual), len(a))
    for m in range(1, len(a) + 1):
        start = random(rng, m, n) if accumulate else None
        plain = multiply(level, a[:m], b, start=start).astype(np.float64)

        def finished(epilogue: str, m: int = m, start: Any = start, **extra: Any) -> Floats:
            return multiply(level, a[:m], b, start=start, epilogue=epilogue, **extra)

        scaled = finished("row_scale", row_scale=scale[:m])
        assert_same_bits(scaled, plain.astype(np.float32) * scale[:m, None])
        for name in ("bias", "identity"):
            biased = finished(name, bias=bias)
            np.testing.assert_allclose(biased, plain + bias, rtol=EPS, atol=EPS)
        for chosen in (None, rows[:m]):
            added = residual[:m] if chosen is None else residual[chosen]
            result = finished("bias_residual", bias=bias, residual=residual, residual_rows=chosen)
            limit = EPS * (np.abs(plain) + np.abs(bias) + np.abs(added)).max()
            np.testing.assert_allclose(result, plain + bias + added, rtol=0, atol=limit)


def activation_inputs() -> Floats:
    """Small, usual, large and extreme arguments of both signs."""
    usual = np.linspace(-12, 12, 4001)
    tiny = np.logspace(-30, 0, 200)
    huge = np.logspace(0, 4, 200)
    edges = np.array([0.0, 0.5, 1.0, 3.92, 5.5437, 87.3, 88.4, 89.0, 103.9, 104.1])
    return np.concatenate([usual, tiny, -tiny, huge, -huge, edges, -edges]).astype(np.float32)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gemm_activation_equals_transformers(level: str, activation: str) -> None:
    """Against each Hugging Face function of that name in float64, on the bias path and the sum."""
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    x = activation_inputs()
    x = np.concatenate([x, x[: -len(x) % PANEL]])
    known = [name for name in ACTIVATIONS[activation] if name in ACT2FN]
    assert known, f"transformers knows none of {ACTIVATIONS[activation]}"
    # Through the bias with a product of zero, and through the product with a bias of zero.
    zero = np.zeros((1, len(x)), dtype=np.float32)
    by_bias = multiply(level, np.ones((3, 1), np.float32), zero, epilogue=activation, bias=x)
    by_sum = multiply(level, np.ones((3, 1), np.float32), x[None], epilogue=activation, bias=zero)
    for name in known:
        exact = ACT2FN[name](torch.from_numpy(x.astype(np.float64))).numpy()
        # Eight units in the last place of the larger of 1 and the argument.
        tolerance = 8 * EPS * np.maximum(1.0, np.abs(x))
        for result in (by_bias, by_sum):
            error = np.abs(result.astype(np.float64) - exact)
            worst = int((error / tolerance).max(axis=0).argmax())
            assert (error <= tolerance).all(), f"{name}({x[worst]}) = {result[0, worst]}"
    assert_same_bits(by_bias, by_sum)
    assert_same_bits(by_bias[1:], by_bias[:-1])
