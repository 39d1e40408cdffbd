"""Policies with gates and predicted ratios: presets, the compiled plan, clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gates
import numpy as np
import pytest
from gate_documents import HALF, RATIOS, document, predicted, two_steps
from kernel_memory import assert_same_bits

import tokprune_rt
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


def test_ad_tp() -> None:
    networks = {"gate": gates.perceptron(8, 4, 2), "predictor": gates.perceptron(8, 5, 3)}
    plan = compile_plan(parse_policy(preset("ad-tp", layers=6, ratios=RATIOS, **networks)))
    assert plan is not None
    (step,) = plan["steps"]
    assert (step["site"], step["layer"], step["select"]["ratios"]) == ("embed", 0, RATIOS)
    assert_same_bits(step["select"]["output.bias"], networks["predictor"]["output.bias"])
    with pytest.raises(TypeError, match="needs gate=, predictor= and ratios="):
        preset("ad-tp", layers=6, **networks)
    with pytest.raises(ValueError, match=r"predictor: found output.weight \[3, 5\]"):
        preset("ad-tp", layers=6, ratios=[0.5, 0.2], **networks)


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
    chosen = parse_policy(predicted(64, "post", [1, 2]))
    assert "that a network chooses: 25%, 75%, 50%" in " ".join(policy_words(chosen))
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


def test_wrong_predictions() -> None:
    at = "$.steps[0]"
    parse_policy(predicted(48, "post", [1, 2]))
    scored = predicted(48, "post", [1, 2])
    scored["steps"][0]["site"] = "mid"
    scored["scores"] = {"g": {"kind": "random"}}
    scored["tensors"] = {k: v for k, v in scored["tensors"].items() if k.startswith("p.")}
    refused(scored, f"{at}.site", '"mid"', "predicted_ratio")
    free = predicted(48, "post", [1, 2])
    free["protect"] = {"last": True}
    refused(free, "$.protect.first", "reading the state of the first token")
    refused(predicted(48, "pre", [1], ratios=[]), f"{at}.select.ratios", "empty list")
    refused(predicted(48, "pre", [1], ratios=[0.5, 1.5, 0]), f"{at}.select.ratios[1]")
    refused(predicted(48, "pre", [1], ratios=[0.5]), f"{at}.select.tensor", "with o = 1")
    refused(predicted(48, "pre", [1], tensor="q"), f"{at}.select.tensor", '"q.1.hidden.weight"')
    refused(predicted(48, "pre", [1], activation="exp"), f"{at}.select.activation")
    refused(predicted(40, "pre", [1]), "[h, 48]")
    unlike = predicted(48, "pre", [1])
    unlike["profiles"] = {"fast": {"steps": [{"ratios": [0.1, 0.2]}]}}
    refused(unlike, "$.profiles.fast.steps[0]", "with o = 2")


def test_profiles_of_predicted_ratios() -> None:
    policy = predicted(48, "pre", [1, 2])
    policy["profiles"] = {"fast": {"steps": [{"ratios": [0.1, 0.2, 0.3]}]}}
    parsed = parse_policy(policy)
    assert parse_policy(parsed.to_dict(), parsed.tensors) == parsed
    for profile, ratios in ((None, RATIOS), ("fast", [0.1, 0.2, 0.3])):
        plan = compile_plan(parsed, profile)
        assert plan is not None
        for step in plan["steps"]:
            assert step["select"]["ratios"] == ratios
            assert step["select"].keys() >= {"activation", "hidden.weight", "output.bias"}
            assert "tensor" not in step["select"]


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
