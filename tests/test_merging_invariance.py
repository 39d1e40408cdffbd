"""Merging and pooling bit for bit: batches, threads, levels, and nothing to merge."""

from __future__ import annotations

import functools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import random_model as rm
from engine_calls import (
    LEVELS,
    LEVELS_AND_PRECISIONS,
    assert_same_parts,
    batch,
    encoder,
    precisions,
    rounds_rows,
    split,
)
from hypothesis import HealthCheck, given, settings
from kernel_memory import assert_same_bits
from merge_plans import (
    HIDDEN,
    KEYS,
    all_pairs,
    bipartite,
    drop,
    energy_pairs,
    every_layer,
    merge,
    plan,
    plans,
    pool,
    pooling,
)

from tokprune_rt import _core

MODELS = ("first", "mpnet")
KEYS_OF = ("hidden", "positions", "cu_kept", "pooled", "logits", "kept")
DOCUMENTS = plans()
SIZES = [80, 1, 33, 2, 17, 64, 3]

every_arithmetic = pytest.mark.parametrize(("level", "precision"), LEVELS_AND_PRECISIONS)


@functools.cache
def compiled(name: str) -> Any:
    return _core.Plan(DOCUMENTS[name])


def assert_same_output(actual: Any, expected: Any, message: str) -> None:
    for key in KEYS_OF:
        if expected[key] is None:
            assert actual[key] is None
        else:
            assert_same_bits(actual[key], expected[key], f"{key} {message}")


@every_arithmetic
def test_every_plan_alone_and_together(level: str, precision: str) -> None:
    for model in MODELS:
        sequences = batch(model, SIZES, seed=1)
        for name in DOCUMENTS:
            engine = encoder(model, level, 1, precision)
            alone = [rm.forward(engine, [item], plan=compiled(name)) for item in sequences]
            assert any(out["kept"][-1, 0] < len(s) for out, s in zip(alone, sequences, strict=True))
            for threads in (1, 2):
                engine = encoder(model, level, threads, precision)
                order = sequences[::-1] if threads == 2 else sequences
                out = rm.forward(engine, order, plan=compiled(name))
                assert out["macs"] == sum(one["macs"] for one in alone)
                parts = split(out, order, False)
                for i, part in enumerate(parts if threads == 1 else parts[::-1]):
                    expected = split(alone[i], [sequences[i]], False)[0]
                    message = f"of sequence {i}, {model}, {name}, {threads} threads"
                    assert_same_parts(part, expected, message)


@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 80), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    trace=st.booleans(),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_a_sequence_alone_equals_itself_in_any_batch(
    data: st.DataObject, sizes: list[int], seed: int, trace: bool
) -> None:
    level, precision = data.draw(st.sampled_from(LEVELS_AND_PRECISIONS), label="arithmetic")
    model = data.draw(st.sampled_from(MODELS), label="model")
    name = data.draw(st.sampled_from(list(DOCUMENTS)), label="plan")
    sequences = batch(model, sizes, seed)
    order = data.draw(st.permutations(range(len(sequences))), label="order")
    threads = data.draw(st.sampled_from([1, 2, 4]), label="threads")
    options = {"plan": compiled(name), "trace": trace}
    shuffled = [sequences[i] for i in order]
    together = rm.forward(encoder(model, level, threads, precision), shuffled, **options)
    assert np.isfinite(together["hidden"]).all()
    for i, part in zip(order, split(together, shuffled, False), strict=True):
        one = rm.forward(encoder(model, level, 1, precision), [sequences[i]], **options)
        assert_same_parts(part, split(one, [sequences[i]], False)[0], f"of sequence {i}")


def test_a_trace_changes_nothing() -> None:
    for level in LEVELS:
        for model in MODELS:
            sequences = batch(model, SIZES, seed=2)
            for name in DOCUMENTS:
                engine = encoder(model, level, 2)
                plain, traced = (
                    rm.forward(engine, sequences, plan=compiled(name), trace=trace)
                    for trace in (False, True)
                )
                assert_same_output(traced, plain, f"{level} {model} {name}")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_vector_levels_compute_the_same_bits(precision: str) -> None:
    levels = [level for level in LEVELS if level != "scalar"]
    levels = [level for level in levels if precision != "bf16" or not rounds_rows(level)]
    for model in MODELS:
        sequences = batch(model, SIZES, seed=3)
        for name in DOCUMENTS:
            first, *others = (
                rm.forward(encoder(model, level, 1, precision), sequences, plan=compiled(name))
                for level in levels
            )
            for level, other in zip(levels[1:], others, strict=True):
                assert_same_output(other, first, f"{model} {name} on {level}")


ALONE = {
    "bipartite": lambda i, site: merge(i, site, HIDDEN, bipartite(1.0)),
    "theta": lambda i, site: merge(i, site, HIDDEN, bipartite(theta=2.0)),
    "all pairs": lambda i, site: merge(i, site, HIDDEN, all_pairs(1.0)),
    "energy": lambda i, site: merge(i, site, HIDDEN, energy_pairs(1.0, 0.3)),
    "pool": lambda i, site: pool(i, site, pooling(1.0)),
    "min_tokens": lambda i, site: pool(i, site, pooling(0.1, min_tokens=99)),
}


@every_arithmetic
@pytest.mark.parametrize("log_size", [True, False])
def test_rows_that_stand_for_themselves_are_dense(
    level: str, precision: str, log_size: bool
) -> None:
    for model in MODELS:
        engine = encoder(model, level, 2, precision)
        sequences = batch(model, [25, 80, 1, 2, 16], seed=3)
        dense = rm.forward(engine, sequences)
        for name, make in ALONE.items():
            for site in ("pre", "mid", "post"):
                document = plan(*every_layer(make, site), log_size=log_size)
                # What the last layer would skip for the first token alone, a trace computes.
                for trace in (False, True):
                    out = rm.forward(engine, sequences, plan=_core.Plan(document), trace=trace)
                    assert_same_output(out, dense, f"{model} {name} {site}")
        keys = plan(*every_layer(merge, "mid", KEYS, bipartite(theta=2.0)), log_size=log_size)
        out = rm.forward(engine, sequences, plan=_core.Plan(keys))
        assert_same_output(out, dense, f"{model} keys")


@every_arithmetic
def test_short_sequences_in_a_batch_that_merges(level: str, precision: str) -> None:
    """What skip_below leaves alone gives the bits of the dense run, beside merging neighbours."""
    steps = every_layer(merge, "mid", KEYS, bipartite(0.6))
    chosen = _core.Plan(plan(pool(0, "embed", pooling(stride=2)), *steps, skip_below=30))
    for model in MODELS:
        engine = encoder(model, level, 2, precision)
        sequences = batch(model, [80, 29, 1, 30, 17], seed=4)
        dense = split(rm.forward(engine, sequences), sequences, False)
        merged = split(rm.forward(engine, sequences, plan=chosen), sequences, False)
        for i in (1, 2, 4):
            assert_same_parts(merged[i], dense[i], f"of sequence {i}, {model}")
        for i in (0, 3):
            assert merged[i]["kept"][-1] < len(sequences[i])


@every_arithmetic
def test_narrow_wants_equal_the_whole(level: str, precision: str) -> None:
    """With or without the path for the first token alone, which may merge, too."""
    for model in MODELS:
        engine = encoder(model, level, 1, precision)
        sequences = batch(model, SIZES, seed=5)
        for name in DOCUMENTS:
            whole = rm.forward(engine, sequences, plan=compiled(name))
            narrow = rm.forward(engine, sequences, plan=compiled(name), want="pooled")
            assert_same_bits(narrow["pooled"], whole["pooled"], f"{model} {name}")
            if whole["logits"] is not None:
                narrow = rm.forward(engine, sequences, plan=compiled(name), want="logits")
                assert_same_bits(narrow["logits"], whole["logits"], f"{model} {name}")


@every_arithmetic
def test_sequences_beyond_the_probability_store(level: str, precision: str) -> None:
    shape = rm.config(
        layers=1, hidden=64, heads=64, embedding_size=64, intermediate=16, max_positions=400
    )
    engine = _core.Encoder(shape, rm.tensors(shape), 2, level, precision)
    # 64 heads of 300 x 304 probabilities exceed the store; those of 200 x 208 do not.
    sequences = [rm.tokens(shape, length, 1) for length in (200, 300, 30, 310, 5)]
    steps = [merge(0, "mid", KEYS, bipartite(0.8)), drop(0, "mid", 0.75)]
    chosen = _core.Plan(plan(*steps, layers=1))
    out = rm.forward(engine, sequences, plan=chosen, trace=True)
    for i, part in enumerate(split(out, sequences, False)):
        one = rm.forward(engine, [sequences[i]], plan=chosen, trace=True)
        assert_same_parts(part, split(one, [sequences[i]], False)[0], f"of sequence {i}")
    merged = [-(-len(item) * 8 // 10) for item in sequences]
    assert out["kept"][0].tolist() == [-(-n * 3 // 4) for n in merged]


def test_calls_of_many_micro_batches() -> None:
    """More tokens than one pass takes, on as many threads as there are."""
    sequences = batch("mpnet", [80, 40, 7] * 45, seed=6)
    for name in ("everywhere", "merge, drop", "hidden energy", "post pool"):
        single, several = (
            rm.forward(encoder("mpnet", LEVELS[-1], threads), sequences, plan=compiled(name))
            for threads in (1, 4)
        )
        assert_same_output(several, single, name)
        one = rm.forward(encoder("mpnet", LEVELS[-1]), sequences[99:100], plan=compiled(name))
        part = split(several, sequences, False)[99]
        assert_same_parts(part, split(one, sequences[99:100], False)[0], name)


def test_tokens_outside_the_mean_stay_by_themselves() -> None:
    """A prompt that pooling leaves out does not merge, as if it were protected."""
    skip = np.array([5, 0, 9, 1, 3, 70, 2], np.int32)
    chosen = _core.Plan(
        plan(
            *every_layer(merge, "mid", KEYS, bipartite(0.7)),
            *every_layer(pool, "post", pooling(0.8)),
            protect={"first": False},
        )
    )
    for model in MODELS:
        sequences = batch(model, SIZES, seed=7)
        engine = encoder(model, LEVELS[-1], 2)
        out = rm.forward(engine, sequences, plan=chosen, pool_skip=skip)
        mask = [np.arange(len(s)) < n for s, n in zip(sequences, skip, strict=True)]
        protect = np.concatenate(mask).astype(np.uint8)
        masked = rm.forward(engine, sequences, plan=chosen, protect=protect)
        for key in ("hidden", "positions", "cu_kept", "kept"):
            assert_same_bits(out[key], masked[key], f"{model} {key}")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_broken_weights_break_nothing_else(level: str, value: float) -> None:
    """Counts that do not depend on similarities stay as they are."""
    shape = rm.config()
    for name in ("embeddings.word", "layers.0.k.weight", "layers.1.attention_norm.bias"):
        weights = rm.tensors(shape)
        weights[name][...] = value
        for precision in precisions(level):
            broken = _core.Encoder(shape, weights, 1, level, precision)
            sequences = batch("first", SIZES, seed=8)
            for document in ("keys ratio", "keys energy", "pool ratio mid", "merge, drop"):
                out = rm.forward(broken, sequences, plan=compiled(document))
                sound = rm.forward(encoder("first", level), sequences, plan=compiled(document))
                np.testing.assert_array_equal(out["kept"], sound["kept"])
            for document in DOCUMENTS:
                rm.forward(broken, sequences, plan=compiled(document), trace=True)
