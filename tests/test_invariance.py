"""Bit for bit: a sequence's results do not depend on its batch, the order or the threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import random_model as rm
from hypothesis import HealthCheck, given, settings
from kernel_memory import assert_same_bits

import tokprune_rt
from tokprune_rt import _core

LEVELS = _core.isa_levels()
THREADS = (1, 2, 4)
PLANS = rm.plans()

ENGINE = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])

lengths = st.lists(st.integers(1, 40) | st.integers(1, 80), min_size=1, max_size=6)


@functools.cache
def encoder(model: str, level: str, threads: int = 1) -> Any:
    shape = rm.config(**rm.MODELS[model])
    return _core.Encoder(shape, rm.tensors(shape), threads, level)


@functools.cache
def plan(name: str | None) -> Any:
    return None if name is None else _core.Plan(PLANS[name])


def batch(model: str, sizes: Sequence[int], seed: int) -> list[rm.Tokens]:
    shape = rm.config(**rm.MODELS[model])
    return [rm.tokens(shape, size, seed + i) for i, size in enumerate(sizes)]


def split(out: dict[str, Any], sequences: Sequence[rm.Tokens], per_token: bool) -> list[Any]:
    """The parts of a result that belong to each sequence."""
    bounds = out["cu_kept"]
    tokens = np.cumsum([0, *map(len, sequences)])
    parts = []
    for s in range(len(sequences)):
        part = {"kept": out["kept"][:, s]}
        if out["hidden"] is not None:
            rows = slice(bounds[s], bounds[s + 1])
            part |= {"hidden": out["hidden"][rows], "positions": out["positions"][rows]}
        if out["pooled"] is not None:
            part["pooled"] = out["pooled"][s]
        if out["logits"] is not None:
            rows = slice(tokens[s], tokens[s + 1]) if per_token else slice(s, s + 1)
            part["logits"] = out["logits"][rows]
        if out["trace_kept"] is not None:
            part |= {f"kept {i}": layer[s] for i, layer in enumerate(out["trace_kept"])}
            for i, layer in enumerate(out["trace_scores"]):
                if layer is not None:
                    part[f"scores {i}"] = layer[s]
        parts.append(part)
    return parts


def assert_same_parts(actual: Any, expected: Any, message: str) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert actual[key].shape == expected[key].shape, f"{key} {message}"
        assert_same_bits(actual[key], expected[key], f"{key} {message}")


def models_and_plans() -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    for model, changes in rm.MODELS.items():
        shape = rm.config(**changes)
        pairs.append((model, None))
        pairs += [(model, name) for name in PLANS if rm.fits(shape, PLANS[name])]
    return pairs


@pytest.mark.parametrize("level", LEVELS)
@given(data=st.data(), sizes=lengths, seed=st.integers(0, 99), trace=st.booleans())
@settings(ENGINE, max_examples=200)
def test_a_sequence_alone_equals_itself_in_any_batch(
    level: str, data: st.DataObject, sizes: list[int], seed: int, trace: bool
) -> None:
    model, name = data.draw(st.sampled_from(models_and_plans()), label="model and plan")
    sequences = batch(model, sizes, seed)
    per_token = model == "token"
    options = {"plan": plan(name), "trace": trace}
    alone: list[Any] = []
    macs = 0
    for item in sequences:
        out = rm.forward(encoder(model, level), [item], **options)
        alone += split(out, [item], per_token)
        macs += out["macs"]
    order = data.draw(st.permutations(range(len(sequences))), label="order")
    shuffled = [sequences[i] for i in order]
    threads = data.draw(st.sampled_from(THREADS), label="threads")
    out = rm.forward(encoder(model, level, threads), shuffled, **options)
    assert out["macs"] == macs
    for i, part in zip(order, split(out, shuffled, per_token), strict=True):
        assert np.isfinite(part["hidden"]).all()
        assert_same_parts(part, alone[i], f"of sequence {i} in {order} on {threads} threads")


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_plan_once_on_every_level(level: str, threads: int) -> None:
    """Without chance: each model under each plan, dense included, on a batch of six lengths."""
    pruned = set()
    for model, name in models_and_plans():
        sequences = batch(model, [80, 1, 33, 2, 17, 64], seed=1)
        per_token = model == "token"
        out = rm.forward(encoder(model, level, threads), sequences, plan=plan(name))
        for i, part in enumerate(split(out, sequences, per_token)):
            one = rm.forward(encoder(model, level), [sequences[i]], plan=plan(name))
            alone = split(one, [sequences[i]], per_token)[0]
            assert_same_parts(part, alone, f"of sequence {i}, {model}, {name}")
        if (out["kept"][-1] < [len(item) for item in sequences]).any():
            pruned.add(name)
    assert pruned == set(PLANS) - {"empty"}, "a plan of this test prunes nothing"


@pytest.mark.parametrize("level", LEVELS)
def test_micro_batches_do_not_show(level: str) -> None:
    """More tokens than one micro-batch holds: the results are those of several calls."""
    rng = np.random.default_rng(0)
    sequences = batch("first", [int(n) for n in rng.integers(20, 81, 110)], seed=2)
    assert sum(map(len, sequences)) > 4096
    for name in (None, "threshold drop mid", "threshold_rel restore post"):
        whole = split(
            rm.forward(encoder("first", level, 2), sequences, plan=plan(name)), sequences, False
        )
        for begin in range(0, len(sequences), 50):
            part = sequences[begin : begin + 50]
            out = rm.forward(encoder("first", level), part, plan=plan(name))
            for i, expected in enumerate(split(out, part, False)):
                assert_same_parts(whole[begin + i], expected, f"of sequence {begin + i}, {name}")


@given(data=st.data(), sizes=lengths, seed=st.integers(0, 99))
@settings(ENGINE)
@pytest.mark.parametrize("level", LEVELS)
def test_an_empty_plan_is_dense(
    level: str, data: st.DataObject, sizes: list[int], seed: int
) -> None:
    model = data.draw(st.sampled_from(list(rm.MODELS)))
    sequences = batch(model, sizes, seed)
    dense = rm.forward(encoder(model, level), sequences)
    empty = rm.forward(encoder(model, level), sequences, plan=plan("empty"))
    assert dense["macs"] == empty["macs"]
    for key in ("hidden", "positions", "cu_kept", "pooled", "logits", "kept"):
        if dense[key] is None:
            assert empty[key] is None
        else:
            assert_same_bits(empty[key], dense[key], key)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("site", ["pre", "mid", "post"])
@pytest.mark.parametrize("action", ["drop", "restore", "package"])
def test_a_plan_that_keeps_everything_is_dense(level: str, site: str, action: str) -> None:
    keep_all = rm.plan(rm.score("random"), rm.every_layer(site, action, "quantile", q=0.0))
    for model in ("first", "mpnet"):
        sequences = batch(model, [25, 80, 1, 16], seed=3)
        dense = rm.forward(encoder(model, level), sequences)
        kept = rm.forward(encoder(model, level), sequences, plan=_core.Plan(keep_all))
        for key in ("hidden", "positions", "cu_kept", "pooled", "kept"):
            assert_same_bits(kept[key], dense[key], f"{model} {key}")


@pytest.mark.parametrize("level", LEVELS)
def test_sequences_beyond_the_probability_store(level: str) -> None:
    """The longest sequences decide without stored probabilities: same bits, same decisions."""
    shape = rm.config(
        layers=1, hidden=64, heads=64, embedding_size=64, intermediate=16, max_positions=400
    )
    engine = _core.Encoder(shape, rm.tensors(shape), 2, level)
    # 64 heads of 300 x 304 probabilities exceed the store; those of 200 x 208 do not.
    sequences = [rm.tokens(shape, length, 1) for length in (200, 300, 30, 310, 5)]
    for action in ("drop", "restore"):
        for kind, select in (
            ("quantile", {"q": 0.0}),
            ("ratio", {"ratio": 0.5, "of": "n", "round": "ceil"}),
        ):
            document = rm.plan(
                rm.score("attn_col"), [rm.step(0, "mid", action, kind, **select)], layers=1
            )
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


PROTECTED = [name for name in PLANS if PLANS[name]["protect"]["first"]]


@pytest.mark.parametrize("level", LEVELS)
@given(
    sizes=lengths,
    seed=st.integers(0, 99),
    name=st.none() | st.sampled_from(PROTECTED),
    threads=st.sampled_from(THREADS),
)
@settings(ENGINE, max_examples=80)
def test_the_first_row_path_equals_the_whole(
    level: str, sizes: list[int], seed: int, name: str | None, threads: int
) -> None:
    """When only first tokens are read, the last layer skips the rest and changes no bit."""
    engine = encoder("first", level, threads)
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
    if max(sizes) > 1 and name is None:
        assert pooled["macs"] < whole["macs"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("want", ["pooled", "logits"])
def test_narrow_wants_equal_the_whole_without_the_first_row_path(level: str, want: Any) -> None:
    for model, name in models_and_plans():
        shape = rm.config(**rm.MODELS[model])
        if (want == "logits" and shape["head"] == "none") or (
            want == "pooled" and not shape["pooling"]
        ):
            continue
        sequences = batch(model, [80, 1, 33, 2], seed=4)
        whole = rm.forward(encoder(model, level), sequences, plan=plan(name))
        narrow = rm.forward(encoder(model, level), sequences, plan=plan(name), want=want)
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
