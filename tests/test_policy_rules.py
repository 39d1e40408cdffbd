"""Rules across fields of a policy, compiled plans, and the fit to a model."""

from __future__ import annotations

import copy

import pytest
from policy_documents import MODEL, TOPK, Document, example, one_step, plan, refused

from tokprune_rt.policy import (
    ModelInfo,
    PolicyError,
    bind_policy,
    compile_plan,
    parse_policy,
    policy_hash,
)


@pytest.mark.parametrize(
    ("score", "changes", "fragment"),
    [
        ({"kind": "attn_col"}, {"site": "embed", "layers": [0]}, "$.steps[0].site"),
        ({"kind": "attn_col"}, {"site": "pre", "layers": [0, 1]}, "$.steps[0].site"),
        ({"kind": "attn_col"}, {"site": "pre"}, "$.scores.imp.from"),
        ({"kind": "row_entropy"}, {"site": "embed", "layers": [0]}, "$.steps[0].site"),
        ({"kind": "col_entropy"}, {"site": "pre"}, "$.scores.imp.from"),
        ({"kind": "row_entropy", "from": "previous"}, {"site": "post"}, "$.scores.imp.from"),
        ({"kind": "attn_cum"}, {"site": "pre"}, "$.steps[0].site"),
        ({"kind": "attn_col", "from": "previous"}, {"site": "post"}, "$.scores.imp.from"),
        ({"kind": "attn_col", "from": "previous"}, {"layers": [0, 1]}, "$.steps[0].layers[0]"),
        ({"kind": "attn_cls", "value_norm": True}, {"site": "post"}, "value_norm"),
        (
            {"kind": "attn_cls", "value_norm": True, "from": "previous"},
            {"site": "mid"},
            "value_norm",
        ),
        ({"kind": "attn_cls"}, {"protect": {}, "output": {"kind": "mean"}}, "$.protect.first"),
        (
            {"kind": "attn_cum", "query": "first"},
            {"protect": {"last": True}, "output": {"kind": "mean"}},
            "$.protect.first",
        ),
    ],
)
def test_where_scores_may_be_used(score: Document, changes: Document, fragment: str) -> None:
    refused(one_step(TOPK, score, **changes), fragment)


@pytest.mark.parametrize(
    ("score", "changes"),
    [
        ({"kind": "attn_col", "from": "previous"}, {"site": "pre", "layers": [1, 2]}),
        ({"kind": "attn_col", "from": "previous"}, {"site": "mid", "layers": [1, 2]}),
        ({"kind": "attn_col", "heads": "max", "query": {"segment": 0}}, {"layers": [0, 5]}),
        ({"kind": "attn_cls", "value_norm": True}, {"site": "mid"}),
        ({"kind": "attn_cum", "decay": 0.5, "query": "first"}, {"site": "post"}),
        ({"kind": "random", "seed": 2**64 - 1}, {"site": "embed", "layers": [0]}),
        ({"kind": "random"}, {"site": "pre", "layers": [0, 1]}),
    ],
)
def test_allowed_uses(score: Document, changes: Document) -> None:
    assert parse_policy(one_step(TOPK, score, **changes)).scores["imp"].kind == score["kind"]


def test_fields_of_other_kinds_are_refused() -> None:
    refused(one_step(TOPK, {"kind": "attn_cls", "heads": "mean"}), "$.scores.imp.heads")
    refused(one_step(TOPK, {"kind": "attn_cum", "norm": "none"}), "$.scores.imp.norm")
    refused(one_step(TOPK, {"kind": "attn_cum", "from": "this"}), "$.scores.imp.from")
    refused(one_step(TOPK, {"kind": "random", "seed": 2**64}), "$.scores.imp.seed")
    refused(one_step(TOPK, {"kind": "random", "seed": 0.5}), "$.scores.imp.seed")


def test_actions_that_exclude_each_other() -> None:
    document = one_step(TOPK, action="package")
    parse_policy(document)
    more = copy.deepcopy(document["steps"][0])
    more["action"] = {"kind": "restore"}
    refused({**document, "steps": [document["steps"][0], more]}, "$.steps[0].action.kind")
    refused(
        {**document, "protect": {}, "dead_first": "passive"}, "$.steps[0].action.kind", "dead_first"
    )


def test_cls_output_needs_its_token() -> None:
    refused(one_step(TOPK, protect={"last": True}), "$.output.kind", "cls")
    assert parse_policy(one_step(TOPK, protect={}, dead_first="passive")).dead_first
    assert parse_policy(example(steps=[], profiles={}, protect={})).steps == ()


@pytest.mark.parametrize(
    "output",
    [{"kind": "tokens_restored"}, {"kind": "span"}, {"kind": "mean", "over": "restored"}],
)
def test_restored_outputs_need_restore(output: Document) -> None:
    refused(one_step(TOPK, output=output), "$.steps[0].action.kind", '"drop"')
    policy = parse_policy(one_step(TOPK, output=output, action="restore"))
    assert policy.output is not None
    assert policy.to_dict()["output"] == output


def test_theta_scale_must_have_something_to_scale() -> None:
    document = one_step(TOPK)
    document["profiles"] = {"fast": {"theta_scale": 2}}
    refused(document, "$.profiles.fast.theta_scale")


# Profiles and plans


def test_plan_has_every_field() -> None:
    document = example(
        protect={"first": True, "last": True, "token_ids": [3, 1], "segment": 1},
        scores={
            "unused": {"kind": "random"},
            "imp": {
                "kind": "attn_col",
                "heads": "sum",
                "diagonal": False,
                "query": {"segment": 2},
                "norm": "const",
                "n": 128,
            },
        },
    )
    assert plan(document) == {
        "layers": 6,
        "protect": {"first": True, "last": True, "token_ids": [3, 1], "segment": 1},
        "skip_below": 16,
        "dead_first": False,
        "log_size": False,
        "output": {"kind": "cls", "over": "kept"},
        "scores": [
            {
                "kind": "attn_col",
                "heads": "sum",
                "diagonal": False,
                "query": "segment",
                "segment": 2,
                "norm": "const",
                "n": 128.0,
                "from": "this",
                "decay": 1.0,
                "value_norm": False,
                "table": None,
                "index": "token",
                "seed": 0,
            }
        ],
        "steps": [
            {
                "layer": layer,
                "site": "mid",
                "score": 0,
                "action": "drop",
                "select": {"kind": "threshold", "min_tokens": 2, "max_tokens": 0, "theta": theta},
            }
            for layer, theta in ((2, 0.3), (3, 0.4), (4, 0.5))
        ],
    }


def test_steps_are_ordered_by_layer_site_and_file() -> None:
    def step(layers: list[int], site: str, k: int) -> Document:
        score = "table" if site in ("embed", "pre") else "imp"
        select = {"kind": "topk", "k": k}
        action = {"kind": "drop"}
        return {
            "layers": layers,
            "site": site,
            "score": score,
            "select": select,
            "action": action,
        }

    document = example(
        profiles={},
        scores={"imp": {"kind": "attn_col"}, "table": {"kind": "random"}},
        steps=[
            step([0, 2], "post", 1),
            step([0, 1, 2], "mid", 2),
            step([0, 1], "pre", 3),
            step([0], "embed", 4),
            step([1], "pre", 5),
        ],
    )
    order = [(s["layer"], s["site"], s["select"]["k"], s["score"]) for s in plan(document)["steps"]]
    assert order == [
        (0, "embed", 4, 1),
        (0, "pre", 3, 1),
        (0, "mid", 2, 0),
        (0, "post", 1, 0),
        (1, "pre", 3, 1),
        (1, "pre", 5, 1),
        (1, "mid", 2, 0),
        (2, "mid", 2, 0),
        (2, "post", 1, 0),
    ]


def test_profiles_override_numbers() -> None:
    document = example(
        profiles={
            "fast": {"theta_scale": 2},
            "own": {
                "theta_scale": 0.5,
                "steps": [{"theta": 1, "floor": [0, 0.75, 0], "max_tokens": 9}],
                "limits": {"min_tokens": 4, "max_tokens": 32, "skip_below": 0},
            },
            "same": {"steps": [None]},
        }
    )

    def thetas(profile: str | None) -> list[float]:
        return [step["select"]["theta"] for step in plan(document, profile)["steps"]]

    assert thetas(None) == thetas("same") == [0.3, 0.4, 0.5]
    assert thetas("fast") == [0.6, 0.8, 1.0]
    assert thetas("own") == [0.5, 0.75, 0.5]
    own = plan(document, "own")
    assert own["skip_below"] == 0
    assert [(s["select"]["min_tokens"], s["select"]["max_tokens"]) for s in own["steps"]] == [
        (4, 9)
    ] * 3


@pytest.mark.parametrize(
    ("select", "name"),
    [({"kind": "threshold_n", "eta": 2}, "eta"), ({"kind": "threshold_rel", "t": 2}, "t")],
)
def test_theta_scale_scales_every_threshold(select: Document, name: str) -> None:
    document = one_step(select)
    document["profiles"] = {"fast": {"theta_scale": 1.5}}
    assert [s["select"][name] for s in plan(document, "fast")["steps"]] == [3.0, 3.0]


def test_off_and_unknown_profiles() -> None:
    policy = parse_policy(example())
    assert compile_plan(policy, "off") is None
    assert compile_plan(policy, "default") == compile_plan(policy, None) is not None
    with pytest.raises(ValueError, match=r"unknown profile 'slow'.*off, fast"):
        compile_plan(policy, "slow")
    with pytest.raises(ValueError, match="unknown profile"):
        compile_plan(parse_policy(example(steps=[], profiles={})), "slow")


def test_bounds_combine_to_the_stricter_one() -> None:
    select = {"kind": "topk", "k": 4, "min_tokens": [1, 5], "max_tokens": [50, 9]}
    steps = plan(one_step(select, limits={"min_tokens": 3, "max_tokens": 20}))["steps"]
    bounds = [(s["select"]["min_tokens"], s["select"]["max_tokens"]) for s in steps]
    assert bounds == [(3, 20), (5, 9)]


def test_default_minimum_is_one_or_none_when_the_first_is_passive() -> None:
    assert plan(one_step(TOPK, limits={}))["steps"][0]["select"]["min_tokens"] == 1
    document = one_step(TOPK, limits={}, protect={}, dead_first="passive")
    assert plan(document)["dead_first"] is True
    assert plan(document)["steps"][0]["select"]["min_tokens"] == 0
    assert plan(document)["protect"]["segment"] == -1


# Models


def test_layer_count_must_match() -> None:
    with pytest.raises(PolicyError, match=r"\$\.layers: found 6; allowed: 12"):
        bind_policy(parse_policy(example()), ModelInfo(12, 100, 64))


def test_protected_ids_must_exist() -> None:
    with pytest.raises(PolicyError, match=r"\$\.protect\.token_ids\[0\]: found 7"):
        bind_policy(parse_policy(example()), ModelInfo(6, 7, 64))


def test_output_is_derived_from_the_model() -> None:
    document = example()
    del document["output"]
    policy = parse_policy(document)
    assert bind_policy(policy, MODEL).output is None
    assert compile_plan(policy)["output"] == {"kind": "none", "over": "kept"}  # type: ignore[index]
    for kind in ("cls", "mean"):
        bound = bind_policy(policy, ModelInfo(6, 100, 64, output=kind))
        assert compile_plan(bound)["output"] == {"kind": kind, "over": "kept"}  # type: ignore[index]
        assert "output" not in bound.to_dict()
        assert policy_hash(bound) == policy_hash(policy)
        assert bind_policy(bound, ModelInfo(6, 100, 64, output="mean")).output is not None
    for kind in ("tokens_restored", "span"):
        with pytest.raises(PolicyError, match=r"\$\.steps\[0\]\.action\.kind.*restore"):
            bind_policy(policy, ModelInfo(6, 100, 64, output=kind))
        document["steps"][0]["action"]["kind"] = "restore"
        bound = bind_policy(parse_policy(document), ModelInfo(6, 100, 64, output=kind))
        assert compile_plan(bound)["output"]["kind"] == "tokens"  # type: ignore[index]
        document["steps"][0]["action"]["kind"] = "drop"


def test_derived_cls_output_needs_its_token() -> None:
    document = example(protect={})
    del document["output"]
    with pytest.raises(PolicyError, match=r"protect\.first true"):
        bind_policy(parse_policy(document), ModelInfo(6, 100, 64, output="cls"))
    bind_policy(parse_policy(document), ModelInfo(6, 100, 64, output="mean", pooling=("mean",)))


def test_stated_output_must_be_what_the_model_delivers() -> None:
    policy = parse_policy(example())
    assert bind_policy(policy, ModelInfo(6, 100, 64, output="cls")) == policy
    with pytest.raises(PolicyError, match=r'\$\.output\.kind: found "cls"; allowed: "mean"'):
        bind_policy(policy, ModelInfo(6, 100, 64, output="mean"))
    tokens = parse_policy(one_step(TOPK, output={"kind": "tokens_restored"}, action="restore"))
    assert bind_policy(tokens, ModelInfo(6, 100, 64, output="span")).output == tokens.output


def test_rows_that_pooling_reads_must_stay() -> None:
    document = example(protect={})
    del document["output"]
    policy = parse_policy(document)
    with pytest.raises(PolicyError, match=r'\$\.protect\.first.*"cls"'):
        bind_policy(policy, ModelInfo(6, 100, 64, output="mean", pooling=("cls", "mean")))
    with pytest.raises(PolicyError, match=r'\$\.protect\.last.*"lasttoken"'):
        bind_policy(policy, ModelInfo(6, 100, 64, output="mean", pooling=("lasttoken",)))


@pytest.mark.parametrize(
    ("head", "pooling", "span", "expected"),
    [
        ("none", [], False, None),
        ("none", ["cls"], False, "cls"),
        ("none", ["mean"], False, "mean"),
        ("none", ["cls", "max"], False, "mean"),
        ("first", [], False, "cls"),
        ("token", [], False, "tokens_restored"),
        ("token", [], True, "span"),
    ],
)
def test_model_description(head: str, pooling: list[str], span: bool, expected: str | None) -> None:
    sizes = {"layers": 6, "vocab_size": 100, "max_positions": 64, "hidden": 48}
    info = ModelInfo.from_config({**sizes, "head": head, "pooling": pooling}, span=span)
    assert (info.layers, info.vocab_size, info.max_positions, info.hidden) == (6, 100, 64, 48)
    assert (info.output, info.pooling) == (expected, tuple(pooling))
