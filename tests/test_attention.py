"""Attention in every arithmetic: heads of every width, and what importance is measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import random_model as rm
from engine_calls import (
    LEVELS_AND_PRECISIONS,
    THREADS,
    assert_same_parts,
    batch,
    encoder,
    split,
)
from kernel_memory import assert_same_bits

from tokprune_rt import _core

every_arithmetic = pytest.mark.parametrize(("level", "precision"), LEVELS_AND_PRECISIONS)
# Around the blocks of queries, and the 16 columns and 32 steps of k of packed keys and values.
SIZES = [80, 1, 2, 15, 16, 17, 24, 25, 31, 32, 33, 48, 49, 64, 65]


def heads_of(width: int) -> dict[str, Any]:
    return {"hidden": 2 * width, "heads": 2, "embedding_size": 2 * width}


def keep_all(**score: Any) -> Any:
    """Mid steps that drop nothing: the decision has to be taken, from stored probabilities."""
    steps = rm.every_layer("mid", "drop", "quantile", q=0.0)
    return _core.Plan(rm.plan(rm.score("attn_col", **score), steps))


@every_arithmetic
@pytest.mark.parametrize("width", [8, 16, 30, 48, 64, 96])
def test_heads_of_every_width(level: str, precision: str, width: int) -> None:
    """The same bits alone, in a batch, staged, and where only the first row is computed."""
    engines = [encoder("first", level, n, precision, **heads_of(width)) for n in THREADS]
    sequences = batch("first", SIZES, seed=6)
    dense = rm.forward(engines[0], sequences)
    for item, part in zip(sequences, split(dense, sequences, False), strict=True):
        alone = split(rm.forward(engines[0], [item]), [item], False)[0]
        assert_same_parts(part, alone, f"of {len(item)} tokens")
    for engine in engines:
        # A trace wants the scores even where nothing can be dropped.
        staged = rm.forward(engine, sequences, plan=keep_all(), trace=True)
        first = rm.forward(engine, sequences, want="pooled")
        assert_same_bits(staged["hidden"], dense["hidden"])
        assert_same_bits(first["pooled"], dense["pooled"])
    exact = rm.forward(encoder("first", level, 1, "fp32", **heads_of(width)), sequences)
    limit = {"fp32": 0.0, "bf16x3": 3e-4, "bf16": 0.2, "int8": 0.5}[precision]
    np.testing.assert_allclose(dense["hidden"], exact["hidden"], rtol=0, atol=limit)


@every_arithmetic
@pytest.mark.parametrize("width", [16, 64])
def test_importance_is_that_of_unrounded_probabilities(
    level: str, precision: str, width: int
) -> None:
    """A query hands out exactly 1, whatever P is rounded to before it meets the values."""
    engine = encoder("first", level, 1, precision, **heads_of(width))
    sequences = batch("first", SIZES, seed=7)
    out = rm.forward(engine, sequences, plan=keep_all(heads="sum"), trace=True)
    for layer in out["trace_scores"]:
        for item, scores in zip(sequences, layer, strict=True):
            total = scores.sum(dtype=np.float64)
            np.testing.assert_allclose(total, 2 * len(item), rtol=1e-6)
