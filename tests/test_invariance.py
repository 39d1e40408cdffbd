"""Bit for bit: a sequence's results do not depend on its batch, the order or the threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import random_model as rm
from engine_calls import (
    LEVELS,
    LEVELS_AND_PRECISIONS,
    PLANS,
    THREADS,
    assert_same_parts,
    batch,
    encoder,
    models_and_plans,
    plan,
    precisions,
    split,
)
from hypothesis import HealthCheck, given, settings
from kernel_memory import assert_same_bits

import tokprune_rt
from tokprune_rt import _core

ENGINE = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])

lengths = st.lists(st.integers(1, 40) | st.integers(1, 80), min_size=1, max_size=6)
every_arithmetic = pytest.mark.parametrize(("level", "precision"), LEVELS_AND_PRECISIONS)


@every_arithmetic
@given(data=st.data(), sizes=lengths, seed=st.integers(0, 99), trace=st.booleans())
@settings(ENGINE, max_examples=100)
def test_a_sequence_alone_equals_itself_in_any_batch(
    level: str, precision: str, data: st.DataObject, sizes: list[int], seed: int, trace: bool
) -> None:
    model, name = data.draw(st.sampled_from(models_and_plans()), label="model and plan")
    sequences = batch(model, sizes, seed)
    per_token = model == "token"
    options = {"plan": plan(name), "trace": trace}
    alone: list[Any] = []
    macs = 0
    for item in sequences:
        out = rm.forward(encoder(model, level, 1, precision), [item], **options)
        alone += split(out, [item], per_token)
        macs += out["macs"]
    order = data.draw(st.permutations(range(len(sequences))), label="order")
    shuffled = [sequences[i] for i in order]
    threads = data.draw(st.sampled_from(THREADS), label="threads")
    out = rm.forward(encoder(model, level, threads, precision), shuffled, **options)
    assert out["macs"] == macs
    for i, part in zip(order, split(out, shuffled, per_token), strict=True):
        assert np.isfinite(part["hidden"]).all()
        assert_same_parts(part, alone[i], f"of sequence {i} in {order} on {threads} threads")


@every_arithmetic
def test_every_plan_once_on_every_level(level: str, precision: str) -> None:
    """Without chance: each model under each plan, dense included, on a batch of six lengths."""
    pruned = set()
    for model, name in models_and_plans():
        sequences = batch(model, [80, 1, 33, 2, 17, 64], seed=1)
        per_token = model == "token"
        alone = []
        for item in sequences:
            one = rm.forward(encoder(model, level, 1, precision), [item], plan=plan(name))
            alone += split(one, [item], per_token)
        for threads in THREADS:
            out = rm.forward(encoder(model, level, threads, precision), sequences, plan=plan(name))
            for i, part in enumerate(split(out, sequences, per_token)):
                message = f"of sequence {i}, {model}, {name}, {threads} threads"
                assert_same_parts(part, alone[i], message)
        if (out["kept"][-1] < [len(item) for item in sequences]).any():
            pruned.add(name)
    assert pruned == set(PLANS) - {"empty"}, "a plan of this test prunes nothing"


@given(data=st.data(), sizes=lengths, seed=st.integers(0, 99))
@settings(ENGINE)
@pytest.mark.parametrize("level", LEVELS)
def test_an_empty_plan_is_dense(
    level: str, data: st.DataObject, sizes: list[int], seed: int
) -> None:
    model = data.draw(st.sampled_from(list(rm.MODELS)))
    engine = encoder(model, level, 1, data.draw(st.sampled_from(precisions(level))))
    sequences = batch(model, sizes, seed)
    dense = rm.forward(engine, sequences)
    empty = rm.forward(engine, sequences, plan=plan("empty"))
    assert dense["macs"] == empty["macs"]
    for key in ("hidden", "positions", "cu_kept", "pooled", "logits", "kept"):
        if dense[key] is None:
            assert empty[key] is None
        else:
            assert_same_bits(empty[key], dense[key], key)


@every_arithmetic
@pytest.mark.parametrize("site", ["pre", "mid", "post"])
def test_a_plan_that_keeps_everything_is_dense(level: str, precision: str, site: str) -> None:
    for model in ("first", "mpnet"):
        engine = encoder(model, level, 1, precision)
        sequences = batch(model, [25, 80, 1, 16], seed=3)
        dense = rm.forward(engine, sequences)
        for action in ("drop", "restore", "package"):
            steps = rm.every_layer(site, action, "quantile", q=0.0)
            keep_all = _core.Plan(rm.plan(rm.score("random"), steps))
            kept = rm.forward(engine, sequences, plan=keep_all)
            for key in ("hidden", "positions", "cu_kept", "pooled", "kept"):
                assert_same_bits(kept[key], dense[key], f"{model} {action} {key}")


@every_arithmetic
def test_sequences_beyond_the_probability_store(level: str, precision: str) -> None:
    """The longest sequences decide without stored probabilities: same bits, same decisions."""
    shape = rm.config(
        layers=1, hidden=64, heads=64, embedding_size=64, intermediate=16, max_positions=400
    )
    engine = _core.Encoder(shape, rm.tensors(shape), 2, level, precision)
    # 64 heads of 300 x 304 probabilities exceed the store; those of 200 x 208 do not.
    sequences = [rm.tokens(shape, length, 1) for length in (200, 300, 30, 310, 5)]
    for action in ("drop", "restore"):
        for kind, select in (
            ("quantile", {"q": 0.0}),
            ("ratio", {"ratio": 0.5, "of": "n", "round": "ceil"}),
        ):
            scored = rm.score("attn_col") if kind == "quantile" else rm.entropy("col_entropy")
            document = rm.plan(scored, [rm.step(0, "mid", action, kind, **select)], layers=1)
            chosen = _core.Plan(document)
            out = rm.forward(engine, sequences, plan=chosen, trace=True)
            for i, part in enumerate(split(out, sequences, False)):
                one = rm.forward(engine, [sequences[i]], plan=chosen, trace=True)
                assert_same_parts(part, split(one, [sequences[i]], False)[0], f"of sequence {i}")
            if kind == "quantile":
                assert_same_bits(out["hidden"], rm.forward(engine, sequences)["hidden"])
            else:
                halves = [-(-len(item) // 2) for item in sequences]
                assert out["kept"][0].tolist() == halves


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("hidden", [24, 40, 312])
@pytest.mark.parametrize("modes", [["cls", "mean"], ["mean", "max", "lasttoken"]])
def test_several_poolings_stay_in_their_row(level: str, hidden: int, modes: list[str]) -> None:
    """No vector of these widths ends where a panel does, so a mode pads into what follows it."""
    shape = rm.config(
        layers=1,
        hidden=hidden,
        heads=4,
        embedding_size=hidden,
        pooling=modes,
        head="none",
        head_activation="",
    )
    sequences = [rm.tokens(shape, length, 1) for length in [5, 1, 30, *range(2, 40)]]
    for threads in (1, 2):
        engine = _core.Encoder(shape, rm.tensors(shape), threads, level)
        out = rm.forward(engine, sequences)
        for i, (item, part) in enumerate(zip(sequences, split(out, sequences, False), strict=True)):
            one = split(rm.forward(engine, [item]), [item], False)[0]
            assert_same_parts(part, one, f"of sequence {i} on {threads} threads")
            states = part["hidden"]
            pooled = {
                "cls": states[0],
                "mean": states.mean(axis=0),
                "max": states.max(axis=0),
                "lasttoken": states[-1],
            }
            expected = np.concatenate([pooled[mode] for mode in modes])
            np.testing.assert_allclose(part["pooled"], expected, rtol=1e-4, atol=1e-5)


PROTECTED = [
    name
    for model, name in models_and_plans()
    if model == "first" and name and PLANS[name]["protect"]["first"]
]


def ends_in_the_last_layer(document: dict[str, Any]) -> bool:
    """Whether a step decides inside or after the last layer."""
    return any(
        step["layer"] == rm.LAYERS - 1 and step["site"] in ("mid", "post")
        for step in document["steps"]
    )


@pytest.mark.parametrize("level", LEVELS)
@given(
    data=st.data(),
    sizes=lengths,
    seed=st.integers(0, 99),
    name=st.none() | st.sampled_from(PROTECTED),
    threads=st.sampled_from(THREADS),
)
@settings(ENGINE, max_examples=120)
def test_the_first_row_path_equals_the_whole(
    level: str,
    data: st.DataObject,
    sizes: list[int],
    seed: int,
    name: str | None,
    threads: int,
) -> None:
    """When only first tokens are read, the last layer skips the rest and changes no bit."""
    engine = encoder("first", level, threads, data.draw(st.sampled_from(precisions(level))))
    sequences = batch("first", sizes, seed)
    whole = rm.forward(engine, sequences, plan=plan(name))
    pooled = rm.forward(engine, sequences, plan=plan(name), want="pooled")
    logits = rm.forward(engine, sequences, plan=plan(name), want="logits")
    assert_same_bits(pooled["pooled"], whole["pooled"])
    assert_same_bits(pooled["pooled"], whole["hidden"][whole["cu_kept"][:-1]])
    assert_same_bits(logits["logits"], whole["logits"])
    assert pooled["hidden"] is None
    assert logits["pooled"] is None
    assert pooled["macs"] == logits["macs"] <= whole["macs"]
    # Counts are those of the policy. Steps inside and after the last layer are skipped.
    assert_same_bits(pooled["kept"], logits["kept"])
    assert_same_bits(pooled["kept"][:-1], whole["kept"][:-1])
    assert (pooled["kept"][-1] >= whole["kept"][-1]).all()
    if name is None or not ends_in_the_last_layer(PLANS[name]):
        assert_same_bits(pooled["kept"], whole["kept"])
    if max(sizes) > 1 and name is None:
        assert pooled["macs"] < whole["macs"]


@every_arithmetic
@pytest.mark.parametrize("want", ["pooled", "logits"])
def test_narrow_wants_equal_the_whole_without_the_first_row_path(
    level: str, precision: str, want: Any
) -> None:
    for model, name in models_and_plans():
        shape = rm.config(**rm.MODELS[model])
        if (want == "logits" and shape["head"] == "none") or (
            want == "pooled" and not shape["pooling"]
        ):
            continue
        sequences = batch(model, [80, 1, 33, 2], seed=4)
        engine = encoder(model, level, 1, precision)
        whole = rm.forward(engine, sequences, plan=plan(name))
        narrow = rm.forward(engine, sequences, plan=plan(name), want=want)
        assert_same_bits(narrow[want], whole[want], f"{model} {name}")


def test_profile_off_is_dense(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert")
    document = {
        "format": "token-policy",
        "version": 1,
        "layers": 3,
        "protect": {"first": True},
        "scores": {"imp": {"kind": "attn_col"}},
        "steps": [
            {
                "layers": [0, 1],
                "site": "mid",
                "score": "imp",
                "select": {"kind": "ratio", "ratio": 0.5},
                "action": {"kind": "drop"},
            }
        ],
        "output": {"kind": "mean"},
    }
    dense = tokprune_rt.load(folder, policy="off")
    pruned = tokprune_rt.load(folder, policy=document)
    ids = [[2, *range(5, 25), 3], [2, 7, 3]]
    expected = dense.forward(ids)
    off = pruned.forward(ids, profile="off")
    assert off.stats.macs == expected.stats.macs > pruned.forward(ids).stats.macs
    for actual, wanted in zip(off.hidden, expected.hidden, strict=True):
        assert_same_bits(actual, wanted)


@every_arithmetic
def test_a_token_without_numbers_spoils_its_sequence_and_no_other(
    level: str, precision: str
) -> None:
    """Whichever arithmetic a length gets, and wherever the token stands, nothing finite is made of
    it: a server looks for that."""
    shape = rm.config(max_positions=200)
    sound = _core.Encoder(shape, rm.tensors(shape), 1, level, precision)
    weights = rm.tensors(shape)
    weights["embeddings.word"][3] = np.nan
    broken = _core.Encoder(shape, weights, 1, level, precision)
    for length in (20, 63, 64, 65, 130, 200):
        whole, spoilt = (rm.tokens(shape, length, seed) for seed in (1, 2))
        for item in (whole, spoilt):
            item.ids[item.ids == 3] = 4
        spoilt.ids[length // 2] = 3
        expected = rm.forward(sound, [whole, whole], want="pooled")["pooled"]
        found = rm.forward(broken, [whole, spoilt, whole], want="pooled")["pooled"]
        assert_same_bits(found[[0, 2]], expected, f"{length} tokens")
        assert not np.isfinite(found[1]).any(), f"{length} tokens"
