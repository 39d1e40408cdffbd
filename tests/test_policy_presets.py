"""Presets: the policy each paper's own parameters lead to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from policy_documents import GROUPING_PRESETS, needed

from tokprune_rt.policy import (
    PRESETS,
    ModelInfo,
    PolicyError,
    bind_policy,
    compile_plan,
    parse_policy,
    policy_hash,
    preset,
)

Document = dict[str, Any]


def make(name: str, /, **params: Any) -> Document:
    chosen = {"layers": 6, **params}
    return preset(name, **{**needed(name, chosen["layers"]), **chosen})


def steps_of(document: Document, profile: str | None = None) -> list[Document]:
    plan = compile_plan(parse_policy(document), profile)
    return [] if plan is None else plan["steps"]


def column(document: Document, field: str, profile: str | None = None) -> list[Any]:
    return [step["select"][field] for step in steps_of(document, profile)]


def layers_of(document: Document) -> list[int]:
    return [step["layer"] for step in steps_of(document)]


# All of them


@pytest.mark.parametrize("layers", [1, 2, 3, 6, 12, 24])
@pytest.mark.parametrize("name", PRESETS)
def test_defaults_work_for_any_depth(name: str, layers: int) -> None:
    document = make(name, layers=layers)
    policy = parse_policy(document)
    assert policy.layers == layers
    assert policy.provenance["method"] == name
    assert policy.protect.first and policy.protect.last
    steps = steps_of(document)
    assert steps or (layers == 1 and name in ("ltp", "top"))
    if name not in GROUPING_PRESETS:
        action = "restore" if name == "transkimmer" else "drop"
        assert all(step["action"] == action for step in steps)
    for output in ("cls", "mean", None):
        bind_policy(policy, ModelInfo(layers, 100, 64, output=output))


@pytest.mark.parametrize("name", PRESETS)
def test_documents_are_json_and_round_trip(name: str) -> None:
    document = make(name)
    tensors = document.pop("tensors", None)
    policy = parse_policy(json.loads(json.dumps(document)), tensors)
    assert policy.to_dict() == document
    assert policy_hash(policy) == policy_hash(parse_policy(document, tensors))


@pytest.mark.parametrize("name", PRESETS)
def test_common_parameters(name: str) -> None:
    document = make(
        name,
        protect_first=True,
        protect_last=False,
        protect_token_ids=np.array([7, 9]),
        protect_segment=0,
        min_tokens=3,
        max_tokens=40,
        skip_below=8,
        name="mine",
        output={"kind": "mean"},
        profiles={"bounded": {"limits": {"max_tokens": 20}}},
        provenance={"dataset": "none"},
    )
    policy = parse_policy(document)
    assert policy.protect.token_ids == (7, 9) and policy.protect.segment == 0
    assert not policy.protect.last
    limits = policy.limits
    assert (limits.min_tokens, limits.max_tokens, limits.skip_below) == (3, 40, 8)
    assert policy.name == "mine" and policy.output is not None
    assert policy.provenance == {"method": name, "dataset": "none"}
    assert set(column(document, "max_tokens", "bounded")) == {20}


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in ("top", *GROUPING_PRESETS)])
@pytest.mark.parametrize("action", ["restore", "package"])
def test_actions(name: str, action: str) -> None:
    assert {step["action"] for step in steps_of(make(name, action=action))} == {action}


@pytest.mark.parametrize("name", PRESETS)
def test_wrong_parameters(name: str) -> None:
    with pytest.raises(TypeError, match="unknown parameter 'bogus'"):
        make(name, bogus=1)
    with pytest.raises(TypeError, match="layers"):
        preset(name)
    for layers in (0, -1, 2.0, True, None):
        with pytest.raises(PolicyError, match=r"layers: found"):
            make(name, layers=layers)
    with pytest.raises(PolicyError, match=r"\$\.limits\.min_tokens"):
        make(name, min_tokens=-1)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'evit'; allowed: ltp, top, topk"):
        preset("evit", layers=6)


# LTP


def test_ltp_thresholds_are_the_papers() -> None:
    deltas = np.linspace(0, 0.004, 12, dtype=np.float32)
    document = make("ltp", layers=12, final_threshold=0.0123, deltas=deltas)
    expected = [float(np.float32(0.0123 * i / 12) + deltas[i]) for i in range(1, 12)]
    assert layers_of(document) == list(range(1, 12))
    assert column(document, "theta") == expected
    assert all(np.float32(theta) == theta for theta in column(document, "theta"))
    policy = parse_policy(document)
    score = policy.scores["importance"]
    assert (score.kind, score.norm, score.n, score.diagonal) == ("attn_col", "const", 128.0, True)
    assert policy.protect.first and not policy.protect.last and not policy.dead_first
    assert {step["site"] for step in steps_of(document)} == {"mid"}


def test_ltp_official_rule() -> None:
    deltas = [0.0, 0.01, -0.2, 0.0, 0.0, 0.0]
    document = make("ltp", final_threshold=0.01, deltas=deltas, s_pad=256, official=True)
    policy = parse_policy(document)
    assert policy.dead_first and not policy.protect.first and not policy.protect.last
    assert policy.scores["importance"].n == 256.0
    assert column(document, "theta")[1] == 1e-5
    assert set(column(document, "min_tokens")) == {0}
    assert layers_of(document) == [1, 2, 3, 4, 5]
    bind_policy(policy, ModelInfo(6, 100, 64, output="cls"))


def test_ltp_skips_layers_without_threshold() -> None:
    deltas = np.zeros(6, np.float32)
    deltas[2] = -np.float32(0.06 * 2 / 6)
    assert layers_of(make("ltp", final_threshold=0.06, deltas=deltas)) == [1, 3, 4, 5]
    assert steps_of(make("ltp", final_threshold=0.0)) == []


def test_ltp_untrained_is_relative_to_the_unprotected() -> None:
    document = make("ltp")
    assert parse_policy(document).scores["importance"].norm == "unprotected"
    assert column(document, "theta") == [float(np.float32(0.5 * i / 6)) for i in range(1, 6)]
    faster = make("ltp", profiles={"fast": {"theta_scale": 2}})
    assert column(faster, "theta", "fast") == [2 * theta for theta in column(document, "theta")]


def test_ltp_norms() -> None:
    for norm in ("none", "alive", "n0", "unprotected"):
        score = parse_policy(make("ltp", final_threshold=0.01, norm=norm)).scores["importance"]
        assert (score.norm, score.n) == (norm, None)
    with pytest.raises(PolicyError, match=r"\$\.scores\.importance\.norm"):
        make("ltp", norm="pad")
    with pytest.raises(PolicyError, match=r"\$\.scores\.importance\.n"):
        make("ltp", final_threshold=0.01, s_pad=0)


def test_ltp_bad_deltas() -> None:
    with pytest.raises(ValueError, match=r"deltas: found shape \[5\]; allowed: \[6\]"):
        make("ltp", final_threshold=0.01, deltas=[0.0] * 5)
    with pytest.raises(ValueError, match=r"deltas\[0\]"):
        make("ltp", final_threshold=0.01, deltas=[0.1] * 6)
    with pytest.raises(TypeError, match="final_threshold"):
        make("ltp", deltas=[0.0] * 6)
    with pytest.raises(PolicyError, match="theta"):
        make("ltp", final_threshold=0.01, deltas=[0.0, np.nan, 0, 0, 0, 0])


# ToP

BITS = [[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1]]


def test_top_gates_act_through_the_layer_before() -> None:
    document = make("top", token_bits=BITS, gate_bits=[1, 0, 1])
    steps = steps_of(document)
    assert [(s["layer"], s["site"], s["action"]) for s in steps] == [
        (2, "mid", "drop"),
        (4, "mid", "drop"),
    ]
    assert column(document, "bits") == [BITS[0], BITS[2]]
    assert column(document, "bin_rule") == ["int", "int"]
    policy = parse_policy(document)
    assert policy.protect.first and not policy.protect.last
    assert policy.scores["importance"].source == "this"


def test_top_for_tokens_restores_after_the_layer() -> None:
    document = make("top", token_bits=np.array(BITS, bool), task="tokens", locations=[1, 2, 5])
    steps = steps_of(document)
    assert [(s["layer"], s["site"], s["action"]) for s in steps] == [
        (0, "post", "restore"),
        (1, "post", "restore"),
        (4, "post", "restore"),
    ]
    for output in ("tokens_restored", "span"):
        bind_policy(parse_policy(document), ModelInfo(6, 100, 64, output=output))


def test_top_official_bits() -> None:
    document = make("top", token_bits=np.array(BITS, np.float32), official=True)
    assert column(document, "bin_rule") == ["float32"] * 3
    assert document["provenance"] == {"method": "top", "parity": "unverified"}
    assert layers_of(document) == [2, 3, 4]


def test_top_with_all_gates_off_is_dense() -> None:
    assert steps_of(make("top", token_bits=BITS, gate_bits=[0, 0, 0])) == []


def test_top_untrained_starts_at_location_two() -> None:
    assert layers_of(make("top")) == [1, 2, 3, 4]
    assert column(make("top"), "bits")[0] == [1] * 9 + [0]
    assert layers_of(make("top", locations=[3, 5])) == [2, 4]
    assert layers_of(make("top", locations=[3, 6])) == [2, 5]


@pytest.mark.parametrize(
    ("params", "fragment"),
    [
        ({"token_bits": [1, 0, 1]}, "token_bits"),
        ({"token_bits": [[0.5, 1.0]]}, "token_bits"),
        ({"token_bits": BITS, "gate_bits": [1, 2, 1]}, "gate_bits"),
        ({"token_bits": BITS, "gate_bits": [1, 1]}, "gate_bits"),
        ({"token_bits": BITS, "locations": [1, 2]}, "locations"),
        ({"token_bits": BITS, "locations": [0, 1, 2]}, "locations"),
        ({"token_bits": BITS, "locations": [4, 5, 7]}, "locations"),
        ({"token_bits": BITS, "locations": [4, 5, 6], "task": "tokens"}, "locations"),
        ({"token_bits": BITS, "locations": [2, 1, 3]}, "strictly increasing"),
        ({"token_bits": BITS * 2}, "locations"),
        ({"token_bits": BITS, "bin_rule": "float64"}, "bin_rule"),
        ({"task": "qa"}, "task"),
    ],
)
def test_top_bad_parameters(params: Document, fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        make("top", **params)


def test_top_action_follows_the_task() -> None:
    with pytest.raises(TypeError, match="task"):
        make("top", action="drop")


# Top-k, PoWER-BERT, SpAtten, LAT


def test_topk_schedule_of_the_ltp_paper() -> None:
    document = make("topk", layers=12, keep_rate=0.1)
    assert layers_of(document) == list(range(3, 12))
    assert column(document, "ratio") == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert set(column(document, "of")) == {"n0"} and set(column(document, "round")) == {"round"}
    assert column(make("topk", layers=12, keep_rate=0), "ratio")[-1] == 0.01
    assert layers_of(make("topk", layers=24)) == list(range(4, 24))
    assert not parse_policy(document).scores["importance"].diagonal


def test_topk_counts() -> None:
    assert layers_of(make("topk", k=16)) == [2, 3, 4, 5]
    assert column(make("topk", k=16), "k") == [16] * 4
    document = make("topk", k=np.array([64, 32]), diagonal=True)
    assert (layers_of(document), column(document, "k")) == ([4, 5], [64, 32])
    assert parse_policy(document).scores["importance"].diagonal
    assert layers_of(make("topk", k=[9, 8], locations=[0, 3])) == [0, 3]
    with pytest.raises(ValueError, match="7 values"):
        make("topk", k=[9] * 7)
    with pytest.raises(PolicyError, match=r"select\.k"):
        make("topk", k=2.5)


def test_power_bert_retention() -> None:
    retention = (153, 125, 111, 105, 85, 80)
    document = make("power-bert", retention=retention)
    assert column(document, "k") == list(retention)
    assert layers_of(document) == list(range(6))
    assert not parse_policy(document).scores["importance"].diagonal
    assert not parse_policy(document).protect.last
    untrained = make("power-bert", max_length=60, final_keep=0.4)
    assert column(untrained, "k") == [54, 48, 42, 36, 30, 24]
    with pytest.raises(ValueError, match="never increase"):
        make("power-bert", retention=(9, 8, 7, 6, 5, 6))
    with pytest.raises(ValueError, match="found 2 counts"):
        make("power-bert", retention=(9, 8))


def test_spatten_schedule() -> None:
    document = make("spatten", layers=12, start_keep=0.9, final_keep=0.45, decay=0.5)
    assert layers_of(document) == list(range(2, 12))
    ratios = column(document, "ratio")
    assert ratios == pytest.approx([0.9 - 0.05 * i for i in range(10)])
    assert set(column(document, "of")) == {"n0"}
    score = parse_policy(document).scores["importance"]
    assert (score.kind, score.decay) == ("attn_cum", 0.5)
    with pytest.raises(PolicyError, match="ratio"):
        make("spatten", final_keep=1.5)


def test_lat_configurations_become_profiles() -> None:
    configs = {"good": (60, 50, 40, 40, 30, 20), "fast": (40, 30, 20, 10, 5, 2)}
    document = make("lat", length_configs=configs, action="restore")
    assert column(document, "k") == column(document, "k", "good") == list(configs["good"])
    assert column(document, "k", "fast") == list(configs["fast"])
    shares = make("lat", length_configs=configs, max_length=40)
    assert column(shares, "ratio", "fast") == [1.0, 0.75, 0.5, 0.25, 0.125, 0.05]
    assert column(shares, "ratio")[0] == 1.0 and set(column(shares, "of")) == {"n0"}
    single = make("lat", length_configs=configs["fast"])
    assert column(single, "k") == list(configs["fast"]) and "profiles" not in single


def test_lat_untrained_and_errors() -> None:
    document = make("lat", profiles={"half": {"steps": [{"ratio": 0.5}]}})
    assert column(document, "ratio")[:2] == pytest.approx([0.95, 0.9025])
    assert column(document, "ratio", "fast")[:2] == pytest.approx([0.85, 0.7225])
    assert column(document, "ratio", "half") == [0.5] * 6
    with pytest.raises(ValueError, match="2 lengths in 'a'"):
        make("lat", length_configs={"a": (3, 2)})
    with pytest.raises(ValueError, match="at least one"):
        make("lat", length_configs={})
    with pytest.raises(PolicyError, match="max_length"):
        make("lat", length_configs=(6, 5, 4, 3, 2, 1), max_length=0)
    with pytest.raises(PolicyError, match=r"\$\.profiles\.off"):
        make("lat", length_configs={"off": (6, 5, 4, 3, 2, 1)})


# Training-free


@pytest.mark.parametrize(
    ("name", "field"), [("quantile", "q"), ("top-p", "p"), ("entropy", "ratio")]
)
def test_shares_and_locations(name: str, field: str) -> None:
    assert layers_of(make(name)) == [2, 3, 4, 5]
    assert column(make(name, **{field: 0.5}), field) == [0.5] * 4
    document = make(name, **{field: [0.25, 0.5]})
    assert (layers_of(document), column(document, field)) == ([4, 5], [0.25, 0.5])
    document = make(name, **{field: (0.25, 0.5)}, locations=[1, 3])
    assert layers_of(document) == [1, 3]
    with pytest.raises(PolicyError, match=field):
        make(name, **{field: 1.5})
    with pytest.raises(PolicyError, match="aligned"):
        make(name, **{field: [0.5, 0.5]}, locations=[1])


def test_static_idf_from_documents() -> None:
    documents = [[1, 2, 2, 3], [1, 3], [1]]
    document = preset("static-idf", layers=6, documents=documents, vocab_size=5, ratio=0.5)
    table = document["tensors"]["idf"]
    frequency = np.array([0, 3, 1, 2, 0])
    assert table.dtype == np.float32
    assert table == pytest.approx(np.log(4 / (1 + frequency)) + 1)
    (step,) = steps_of(document)
    assert (step["layer"], step["site"], step["select"]["ratio"]) == (0, "embed", 0.5)
    bind_policy(parse_policy(document), ModelInfo(6, 5, 64))


def test_static_idf_parameters() -> None:
    with pytest.raises(TypeError, match="either idf= or documents="):
        preset("static-idf", layers=6)
    with pytest.raises(TypeError, match="either idf= or documents="):
        preset("static-idf", layers=6, idf=[1.0], documents=[[0]], vocab_size=1)
    with pytest.raises(TypeError, match="needs vocab_size="):
        preset("static-idf", layers=6, documents=[[0]])
    with pytest.raises(ValueError, match=r"documents\[1\]: found id 5; allowed: 0 to 4"):
        preset("static-idf", layers=6, documents=[[0], [5]], vocab_size=5)
    with pytest.raises(ValueError, match=r"documents\[0\]: found id -1"):
        preset("static-idf", layers=6, documents=[[-1]], vocab_size=5)
    with pytest.raises(ValueError, match="documents: found none"):
        preset("static-idf", layers=6, documents=[], vocab_size=5)
    with pytest.raises(ValueError, match=r"idf: found shape \[2\]; allowed: \[3\]"):
        preset("static-idf", layers=6, idf=[1.0, 2.0], vocab_size=3)
    with pytest.raises(PolicyError, match="finite"):
        preset("static-idf", layers=6, idf=[1.0, float("nan")])
