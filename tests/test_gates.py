"""Gates: a network on the state of a token decides. Parity, cost and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gates
import numpy as np
import pytest
import random_model as rm
import torch
from engine_calls import LEVELS, SLACK, batch, encoder
from kernel_memory import assert_same_bits
from parity import LAYERS, Tolerance, check, fewer, forward, plan_of
from reference import compare_output, run
from tiny_models import FAMILIES
from transformers import AutoModel

import tokprune_rt
from tokprune_rt import _core
from tokprune_rt.cli.explain.data import explain_text
from tokprune_rt.cli.words import policy_words
from tokprune_rt.policy import (
    ModelInfo,
    PolicyError,
    bind_policy,
    compile_plan,
    parse_policy,
    preset,
)

WIDTH = 384
# A logit adds the errors of a whole state, so decisions are closer to their band than those on
# column sums: margins count relative to the mean size of the logits.
LOGITS = Tolerance(band=1e-4 * SLACK, agreeing=0.95)


def networks(count: int, outputs: int, hidden: int, lift: float) -> list[gates.Perceptron]:
    """Random gates for all-MiniLM-L6-v2 that keep more or less, by ``lift``."""
    found = gates.perceptrons(count, WIDTH, hidden, outputs)
    for network in found:
        network["output.bias"][-1] += lift
    return found


PRESETS: dict[str, dict[str, Any]] = {
    "transkimmer": {"gates": networks(LAYERS - 1, 2, WIDTH, 0.6)},
    "transkimmer drop everywhere": {"gates": networks(LAYERS, 2, 40, 0.6), "action": "drop"},
    "adapler": {"gates": networks(LAYERS, 1, 32, 0.0), "eta": [0.3, 0.3, 0.4, 0.4, 0.5, 0.5]},
    "adapler package": {"gates": networks(2, 1, 32, 0.0), "eta": 0.6, "action": "package"},
    "tr-bert": {"gates": networks(2, 1, 48, 0.2), "activation": "gelu_new"},
    "tr-bert pair": {"gates": networks(2, 2, 48, 0.2), "activation": "relu", "action": "restore"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(minilm: Any, torch_model: Any, token_ids: list[list[int]], name: str) -> None:
    plan = plan_of(preset(name.split()[0], layers=LAYERS, **PRESETS[name]))
    some = fewer(token_ids, 10)
    share = check(minilm.engine.encoder, torch_model, some, plan, LOGITS)
    assert 0.02 < share < 0.9


def document(
    width: int,
    site: str,
    layers: list[int],
    select: dict[str, Any],
    action: str = "drop",
    **score: Any,
) -> dict[str, Any]:
    """A policy for three layers with one gate, ``outputs`` wide."""
    outputs = score.pop("outputs", 1)
    found = {i: gates.perceptron(width, 19, outputs, i) for i in layers}
    return {
        "format": "token-policy",
        "version": 1,
        "layers": 3,
        "protect": {"first": True},
        "scores": {"g": {"kind": "gate", "tensor": "gate", **score}},
        "steps": [
            {
                "layers": layers,
                "site": site,
                "score": "g",
                "select": select,
                "action": {"kind": action},
            }
        ],
        "tensors": gates.tensors("gate", found),
    }


RATIO = {"kind": "ratio", "ratio": 0.7}
HALF = {"kind": "gate", "t": 0.4}
SHARE = {"kind": "threshold_n", "eta": 0.5}


def variants(width: int) -> dict[str, dict[str, Any]]:
    return {
        "embed": document(width, "embed", [0], RATIO),
        "pre": document(width, "pre", [0, 2], HALF, outputs=2, activation="silu"),
        "pre restore": document(width, "pre", [1, 2], HALF, "restore", activation="tanh"),
        "post": document(width, "post", [0, 1], RATIO, activation="linear"),
        "post package": document(width, "post", [0, 1], RATIO, "package", activation="sigmoid"),
        "softmax": document(
            width, "pre", [0, 1, 2], {"kind": "threshold_n", "eta": 0.5}, softmax=True
        ),
        "two at a boundary": two_steps(width),
    }


def two_steps(width: int) -> dict[str, Any]:
    """After layer 0 a drop by attention, then a gate on the states that are left."""
    result = document(width, "pre", [1, 2], RATIO, "restore")
    first = {
        "layers": [0, 1],
        "site": "post",
        "score": "a",
        "select": {"kind": "ratio", "ratio": 0.8},
        "action": {"kind": "drop"},
    }
    result["scores"]["a"] = {"kind": "attn_col"}
    result["steps"].insert(0, first)
    return result


def ids_of(vocabulary: int, count: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, vocabulary, n).tolist() for n in (1, 2, 60, *range(5, 5 + count))]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_the_float64_reference(tiny: Callable[..., Path], family: str) -> None:
    folder = tiny(family)
    loaded = tokprune_rt.load(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    width = model.config.hidden_size
    ids = ids_of(model.config.vocab_size)
    for name, policy in variants(width).items():
        plan = compile_plan(parse_policy(policy))
        reference = run(model, ids, plan, dtype=torch.float64)
        result = compare_output(reference, forward(loaded.engine.encoder, ids, plan), 1e-4 * SLACK)
        assert result.mismatches == [], f"{family} {name}"
        assert len(result.agreeing) >= len(ids) - 1, f"{family} {name}"
        assert result.hidden <= 1e-4 * SLACK and result.scores <= 1e-3, f"{family} {name}"
        assert sum(map(len, reference.kept[-1])) < sum(map(len, ids)), f"{name} prunes nothing"


@pytest.mark.parametrize("level", LEVELS)
def test_macs_count_the_rows_that_a_gate_reads(level: str) -> None:
    """Only sequences that the step may prune are read."""
    engine = encoder("first", level)
    sequences = batch("first", [40, 7, 33], seed=2)
    dense = rm.forward(engine, sequences)
    keep = {"kind": "gate", "threshold": -1e30}
    gate = rm.gate(48, 2)
    for skip, rows in ((0, 80), (8, 73), (99, 0)):
        steps = [rm.step(layer, "pre", "drop", **keep) for layer in (0, 2)]
        out = rm.forward(engine, sequences, plan=_core.Plan(rm.plan(gate, steps, skip_below=skip)))
        assert out["macs"] - dense["macs"] == 2 * rows * (48 * 21 + 21 * 2)
        assert_same_bits(out["hidden"], dense["hidden"])


@pytest.mark.parametrize("level", LEVELS)
def test_scores_are_float32_in_every_precision(level: str) -> None:
    """Before the first layer no product is rounded, so the scores are the same bits."""
    gate = rm.gate(48, 2)
    plan = _core.Plan(rm.plan(gate, [rm.step(0, "pre", "drop", "topk", k=5)]))
    sequences = batch("first", [40, 3, 17], seed=5)
    scores = [
        rm.forward(encoder("first", level, 1, name), sequences, plan=plan, trace=True)
        for name in ("fp32", "bf16", "int8")
    ]
    for other in scores[1:]:
        for ours, theirs in zip(
            scores[0]["trace_scores"][0], other["trace_scores"][0], strict=True
        ):
            assert_same_bits(ours, theirs)


def test_argmax_keeps_ties() -> None:
    gate = rm.gate(48, 2)
    for network in gate["layers"].values():
        network["output.weight"][1] = network["output.weight"][0]
        network["output.bias"][:] = 3.0
    sequences = batch("first", [40, 3], seed=5)
    for threshold, kept in ((0.0, [40, 3]), (1e-6, [1, 1])):
        plan = rm.plan(gate, [rm.step(1, "pre", "drop", "gate", threshold=threshold)])
        out = rm.forward(encoder("first", LEVELS[-1]), sequences, plan=_core.Plan(plan))
        assert out["kept"][1].tolist() == kept


def test_profiles_and_off(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert")
    width = tokprune_rt.load(folder).config.hidden
    policy = document(width, "pre", [1, 2], {"kind": "gate", "t": 0.5})
    policy["profiles"] = {"all": {"steps": [{"t": 1e-300}]}, "none": {"steps": [{"t": 1 - 1e-16}]}}
    model = tokprune_rt.load(folder, policy=policy)
    dense = tokprune_rt.load(folder, policy="off")
    ids = ids_of(60)
    expected = dense.forward(ids)
    for profile in ("off", "all"):
        found = model.forward(ids, profile=profile)
        for ours, theirs in zip(found.hidden, expected.hidden, strict=True):
            assert_same_bits(ours, theirs)
    assert model.forward(ids, profile="off").stats.macs == expected.stats.macs
    assert all(len(rows) == 1 for rows in model.forward(ids, profile="none").positions)
    assert (
        tokprune_rt.load(tokprune_rt.export(folder, folder.parent / "gated", policy=policy)).policy
        == model.policy
    )


# Presets


def made(name: str, count: int, outputs: int, **parameters: Any) -> Any:
    document = preset(name, layers=6, gates=gates.perceptrons(count, 8, 4, outputs), **parameters)
    policy = parse_policy(document)
    plan = compile_plan(policy)
    assert plan is not None
    steps = plan["steps"]
    assert {step["site"] for step in steps} == {"pre"}
    assert set(plan["scores"][0]["layers"]) == {step["layer"] for step in steps}
    return [step["layer"] for step in steps], steps, plan["scores"][0], policy


def test_transkimmer() -> None:
    layers, steps, score, policy = made("transkimmer", 5, 2)
    assert layers == [1, 2, 3, 4, 5] and not score["softmax"]
    assert {step["action"] for step in steps} == {"restore"}
    assert [step["select"]["threshold"] for step in steps] == [0.0] * 5
    first = gates.perceptron(8, 4, 2, seed=0)
    assert_same_bits(policy.tensors["gate.1.hidden.weight"], first["hidden.weight"])
    assert made("transkimmer", 6, 2)[0] == [0, 1, 2, 3, 4, 5]
    assert made("transkimmer", 2, 2, locations=[1, 4], action="drop")[0] == [1, 4]


def test_adapler() -> None:
    layers, steps, score, _ = made("adapler", 6, 1, eta=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert layers == [0, 1, 2, 3, 4, 5] and score["softmax"]
    assert [step["select"]["eta"] for step in steps] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert {step["select"]["kind"] for step in steps} == {"threshold_n"}
    assert {step["action"] for step in steps} == {"drop"}


def test_tr_bert() -> None:
    layers, steps, score, _ = made("tr-bert", 2, 1, activation="tanh")
    assert layers == [1, 3] and score["activation"] == "tanh"
    assert [step["select"]["threshold"] for step in steps] == [0.0, 0.0]


def test_wrong_preset_parameters() -> None:
    two = gates.perceptrons(2, 8, 4, 2)
    for name in ("transkimmer", "adapler", "tr-bert"):
        with pytest.raises(TypeError, match=f'preset "{name}" needs gates='):
            preset(name, layers=6)
        with pytest.raises(ValueError, match="2 gates for 3 locations"):
            preset(name, layers=6, gates=two, locations=[1, 2, 3], **NEEDS.get(name, {}))
    with pytest.raises(TypeError, match="needs eta="):
        preset("adapler", layers=6, gates=gates.perceptrons(2, 8, 4, 1))
    with pytest.raises(ValueError, match=r"gates\[0\]: found output.weight \[2, 4\]"):
        preset("adapler", layers=6, gates=two, eta=0.5)
    with pytest.raises(ValueError, match=r"gates\[1\]: found the tensors \['output.bias'\]"):
        broken = [two[0], {"output.bias": two[1]["output.bias"]}]
        preset("transkimmer", layers=6, gates=broken)


NEEDS: dict[str, Any] = {"adapler": {"eta": 0.5}}


def test_words_and_explain(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert")
    policy = document(64, "pre", [1, 2], {"kind": "gate", "t": 0.25}, activation="tanh")
    words = " ".join(policy_words(parse_policy(policy)))
    assert "probability of at least 25%" in words and "gate on the token's state (tanh)" in words
    explained = explain_text(tokprune_rt.load(folder, policy=policy), "fox and hare")
    assert explained.tokens


# Refusals


def refused(changed: dict[str, Any], *fragments: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy = parse_policy(changed)
        bind_policy(policy, ModelInfo(3, 100, 64, hidden=48))
    for fragment in fragments:
        assert fragment in str(caught.value)


def changed(name: str, tensor: Any) -> dict[str, Any]:
    policy = document(48, "pre", [1, 2], HALF)
    if tensor is None:
        del policy["tensors"][name]
    else:
        policy["tensors"][name] = np.asarray(tensor, np.float32)
    return policy


def test_wrong_tensors() -> None:
    parse_policy(document(48, "pre", [1, 2], HALF))
    at = "$.scores.g.tensor: found "
    for part in ("hidden.weight", "hidden.bias", "output.weight", "output.bias"):
        refused(changed(f"gate.2.{part}", None), at + f'no tensor "gate.2.{part}"', "allowed")
        refused(changed(f"gate.1.{part}", np.zeros((2, 3, 4))), "of shape [2, 3, 4]")
        nan = np.full_like(document(48, "pre", [1], HALF)["tensors"][f"gate.1.{part}"], np.nan)
        refused(changed(f"gate.1.{part}", nan), "nan", "finite numbers")
    refused(changed("gate.1.hidden.bias", np.zeros(18)), "of shape [18]", "shape [19]")
    refused(changed("gate.1.output.weight", np.zeros((1, 18))), "shape [o, 19]")
    refused(changed("gate.1.output.weight", np.zeros((3, 19))), "with o = 1 or 2")
    refused(changed("gate.1.output.bias", np.zeros(2)), "of shape [2]", "shape [1]")
    refused(changed("gate.1.hidden.weight", np.zeros((0, 48))), "none of them 0")
    refused(changed("gate.1.hidden.weight", np.zeros((19, 40))), "[19, 40]", "[h, 48]")
    refused(changed("gate.0.hidden.bias", np.zeros(3)), "gate.0.hidden.bias", "only tensors in use")
    softmax = document(48, "pre", [1], {"kind": "topk", "k": 3}, outputs=2, softmax=True)
    refused(softmax, "gate.1.output.weight", "with o = 1")


def test_wrong_uses() -> None:
    refused(document(48, "mid", [1], HALF), "$.steps[0].site", '"mid"', '"embed", "pre" or "post"')
    refused(document(48, "pre", [1], HALF, softmax=True), "$.steps[0].select.kind", "softmax")
    refused(document(48, "pre", [1], HALF, activation="softplus"), "$.scores.g.activation", "gelu")
    for t in (0, 1, -0.5, True, "0.5", float("nan")):
        bad = document(48, "pre", [1], {"kind": "gate", "t": t})
        refused(bad, "$.steps[0].select.t")
    column = two_steps(48)
    column["steps"][0]["select"] = {"kind": "gate", "t": 0.5}
    refused(column, "$.steps[0].select.kind", "attn_col", "kind gate")
    both = document(48, "pre", [1], HALF)
    both["steps"].append({**both["steps"][0], "site": "post", "layers": [1]})
    refused(both, ".site", "one site")


def test_the_form_of_the_plan() -> None:
    policy = document(48, "pre", [0, 2], {"kind": "gate", "t": [0.5, 0.9]}, activation="gelu_new")
    tensors = dict(policy["tensors"])
    plan = compile_plan(parse_policy(policy))
    assert plan is not None
    (score,) = plan["scores"]
    assert score.keys() == {"kind", "activation", "softmax", "layers"}
    assert (score["activation"], score["softmax"]) == ("gelu_tanh", False)
    for layer in (0, 2):
        assert score["layers"][layer]["output.bias"] is not None
        for part, tensor in score["layers"][layer].items():
            assert_same_bits(tensor, tensors[f"gate.{layer}.{part}"])
    thresholds = [step["select"]["threshold"] for step in plan["steps"]]
    assert thresholds == [0.0, pytest.approx(np.log(9), rel=1e-15)]
