"""What a precision means, and that every vector level computes the same bits at each."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_model as rm
from engine_calls import (
    LEVELS,
    batch,
    encoder,
    has_tiles,
    models_and_plans,
    plan,
    precisions,
    rounds_rows,
)
from kernel_memory import assert_same_bits, from_bf16, to_bf16

import tokprune_rt
from tokprune_rt import _core

VECTOR_LEVELS = [level for level in LEVELS if level != "scalar"]
OUTPUTS = ("hidden", "positions", "cu_kept", "pooled", "logits", "kept")


def comparable(level: str, precision: str) -> bool:
    """Only bf16 depends on the level: bfloat16 products round the activations as well."""
    return precision != "bf16" or not rounds_rows(level)


@functools.cache
def outputs(level: str, precision: str, threads: int = 1) -> list[dict[str, Any]]:
    """Every model under every plan, with a trace."""
    return [
        rm.forward(
            encoder(model, level, threads, precision),
            batch(model, [80, 1, 33, 2, 17, 64], seed=8),
            plan=plan(name),
            trace=True,
        )
        for model, name in models_and_plans()
    ]


def assert_same_output(actual: dict[str, Any], expected: dict[str, Any], message: str) -> None:
    assert actual["macs"] == expected["macs"], message
    for key in OUTPUTS:
        assert (actual[key] is None) == (expected[key] is None)
        if expected[key] is not None:
            assert_same_bits(actual[key], expected[key], f"{key} {message}")
    for key in ("trace_kept", "trace_scores"):
        for a, b in zip(actual[key], expected[key], strict=True):
            assert (a is None) == (b is None)
            for mine, theirs in zip(a or [], b or [], strict=True):
                assert_same_bits(mine, theirs, f"{key} {message}")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("level", VECTOR_LEVELS[1:])
def test_vector_levels_compute_the_same_bits(level: str, precision: str) -> None:
    """Whole models, decisions included: a level is a speed, not a result."""
    if not comparable(level, precision):
        pytest.skip("this level rounds the activations as well")
    found = outputs(level, precision, threads=2)
    expected = outputs(VECTOR_LEVELS[0], precision)
    for case, actual, wanted in zip(models_and_plans(), found, expected, strict=True):
        assert_same_output(actual, wanted, f"of {case} differs from {VECTOR_LEVELS[0]}")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_scalar_level_differs_by_rounding_only(precision: str) -> None:
    """Dense runs, where no decision is at stake. int8 steps that round the other way show."""
    tolerance = {"fp32": 1e-5, "bf16": 1e-5, "int8": 0.05}[precision]
    for model in rm.MODELS:
        sequences = batch(model, [80, 1, 33], seed=9)
        plain, fast = (
            rm.forward(encoder(model, level, 1, precision), sequences)["hidden"]
            for level in ("scalar", VECTOR_LEVELS[0])
        )
        np.testing.assert_allclose(plain, fast, rtol=0, atol=tolerance)


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_request_becomes(level: str) -> None:
    shape = rm.config()
    weights = rm.tensors(shape)
    exact = "bf16x3" if has_tiles(level) else "fp32"
    becomes = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "bf16x3": exact, "auto": exact}
    for request, precision in becomes.items():
        assert _core.Encoder(shape, weights, 1, level, request).precision == precision
        assert _core.resolve_precision(request, level) == precision
    assert _core.Encoder(shape, weights, 1, level).precision == exact


def test_bf16x3_without_tiles_is_fp32() -> None:
    levels = [level for level in LEVELS if not has_tiles(level)]
    for level in levels:
        a, b = (
            rm.forward(encoder("first", level, 1, name), batch("first", [40, 3], seed=1))["hidden"]
            for name in ("bf16x3", "fp32")
        )
        assert_same_bits(a, b)


@pytest.mark.parametrize("level", [level for level in LEVELS if has_tiles(level)] or LEVELS[:1])
def test_bf16x3_is_as_good_as_fp32(level: str) -> None:
    for model in rm.MODELS:
        sequences = batch(model, [80, 1, 33], seed=2)
        exact, split = (
            rm.forward(encoder(model, level, 1, name), sequences)["hidden"]
            for name in ("fp32", "bf16x3")
        )
        np.testing.assert_allclose(split, exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["fp16", "FP32", "int8 ", "int", "bf16x2"])
def test_unknown_precision_is_refused(name: str) -> None:
    shape = rm.config()
    message = f"unknown precision '{name}'; supported: auto, fp32, bf16, int8, bf16x3"
    with pytest.raises(ValueError, match=message):
        _core.Encoder(shape, rm.tensors(shape), 1, "", name)
    with pytest.raises(ValueError, match=message):
        _core.resolve_precision(name)


def is_product(name: str) -> bool:
    """The products of the encoder layers; projection, pooling and head stay float32."""
    return re.fullmatch(r"layers\.\d+\.(q|k|v|o|ffn_in|ffn_out)\.weight", name) is not None


@pytest.mark.parametrize("level", [level for level in LEVELS if not rounds_rows(level)])
def test_bf16_is_fp32_on_rounded_weights(level: str) -> None:
    for model, changes in rm.MODELS.items():
        shape = rm.config(**changes)
        weights = rm.tensors(shape)
        rounded = {n: from_bf16(to_bf16(w)) if is_product(n) else w for n, w in weights.items()}
        sequences = batch(model, [80, 1, 33], seed=3)
        half = rm.forward(_core.Encoder(shape, weights, 1, level, "bf16"), sequences)
        full = rm.forward(_core.Encoder(shape, rounded, 1, level, "fp32"), sequences)
        for key in ("hidden", "pooled", "logits"):
            if full[key] is not None:
                assert_same_bits(half[key], full[key], f"{model} {key}")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("precision", ["bf16", "int8", "bf16x3"])
def test_everything_else_stays_float32(level: str, precision: str) -> None:
    """With products of zero, exact in every precision, embeddings, norms and heads are left."""
    for model, changes in rm.MODELS.items():
        shape = rm.config(**changes)
        weights = {n: 0 * w if is_product(n) else w for n, w in rm.tensors(shape).items()}
        sequences = batch(model, [80, 1, 33], seed=4)
        reduced, full = (
            rm.forward(_core.Encoder(shape, weights, 1, level, name), sequences)
            for name in (precision, "fp32")
        )
        for key in ("hidden", "pooled", "logits"):
            if full[key] is not None:
                assert_same_bits(reduced[key], full[key], f"{model} {key}")


@pytest.mark.parametrize("level", LEVELS)
def test_a_reduced_precision_is_close_but_not_the_same(level: str) -> None:
    """Bounds with room: a scale or a zero point gone wrong leaves nothing recognisable."""
    for model in rm.MODELS:
        sequences = batch(model, [80, 1, 33], seed=5)
        exact = rm.forward(encoder(model, level, 1, "fp32"), sequences)["hidden"]
        for name, limit in (("bf16", 0.015), ("int8", 0.06)):
            found = rm.forward(encoder(model, level, 1, name), sequences)["hidden"]
            assert 0 < np.abs(found - exact).mean() < limit, (model, name)


def test_reduced_precisions_take_less_memory() -> None:
    """A layer's products are nearly everything; int8 adds a scale and a sum per column."""
    shape = rm.config(hidden=128, heads=4, embedding_size=128, intermediate=512, layers=6)
    weights = rm.tensors(shape)
    sizes = {
        name: _core.Encoder(shape, weights, 1, LEVELS[-1], name).weight_bytes
        for name in precisions(LEVELS[-1])
    }
    assert sizes["int8"] < 0.3 * sizes["fp32"]
    assert sizes["bf16"] < 0.55 * sizes["fp32"]


def test_load_takes_a_precision(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert")
    ids = [[2, *range(5, 25), 3], [2, 7, 3]]
    exact = tokprune_rt.load(folder, precision="fp32").forward(ids).hidden
    for name in ("bf16", "int8"):
        model = tokprune_rt.load(folder, precision=name)
        assert model.engine.encoder.precision == name
        for a, b in zip(model.forward(ids).hidden, exact, strict=True):
            assert not np.array_equal(a, b)
            np.testing.assert_allclose(a, b, rtol=0, atol=0.5)
    assert tokprune_rt.load(folder).engine.encoder.precision in ("fp32", "bf16x3")
