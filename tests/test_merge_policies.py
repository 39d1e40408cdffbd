"""Policies that merge or pool tokens: rules, profiles, outputs and presets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from policy_documents import (
    GROUPING_PRESETS,
    TOPK,
    Document,
    grouping,
    one_step,
    plan,
    refused,
)

from tokprune_rt.cli.words import policy_words
from tokprune_rt.policy import (
    ModelInfo,
    PolicyError,
    bind_policy,
    compile_plan,
    parse_policy,
    policy_hash,
    preset,
)

MERGE: Document = {"kind": "bipartite", "ratio": 0.9}
POOL: Document = {"kind": "pool", "stride": 2}


def with_step(document: Document, *, first: bool = False, **changes: Any) -> Document:
    """The document with one more step, like its own but for the changes."""
    own = document["steps"]
    more = {**copy.deepcopy(own[0]), **changes}
    return {**document, "steps": [more, *own] if first else [*own, more]}


# Rules


@pytest.mark.parametrize(
    ("select", "score", "action"),
    [
        (TOPK, "attn_col", "merge"),
        (TOPK, "attn_col", "pool"),
        (TOPK, "similarity", "drop"),
        (TOPK, "similarity", "merge"),
        (TOPK, "uniform", "drop"),
        (MERGE, "attn_col", "merge"),
        (MERGE, "similarity", "drop"),
        (MERGE, "similarity", "package"),
        (MERGE, "similarity", "pool"),
        (MERGE, "uniform", "merge"),
        (POOL, "uniform", "merge"),
        (POOL, "uniform", "drop"),
        (POOL, "similarity", "pool"),
        (POOL, "random", "pool"),
    ],
)
def test_action_selection_and_score_go_together(select: Document, score: str, action: str) -> None:
    document = one_step(select, {"kind": score}, action=action)
    refused(document, "$.steps[0].action.kind: found", f'"{action}"', score, "exactly with")


@pytest.mark.parametrize("select", [MERGE, POOL])
def test_actions_that_exclude_grouping(select: Document) -> None:
    document = grouping(select)
    path, action = "$.steps[0].action.kind", document["steps"][0]["action"]["kind"]
    document["scores"]["other"] = {"kind": "attn_col"}
    for other in ("restore", "package"):
        both = with_step(document, score="other", select=TOPK, action={"kind": other})
        refused(both, path, f'"{action}" beside a step with "{other}"')
    drop = with_step(document, score="other", select=TOPK, action={"kind": "drop"})
    assert len(parse_policy(drop).steps) == 2
    refused({**document, "protect": {}, "dead_first": "passive"}, path, f'"{action}" with dead_')


def test_log_size_is_the_same_for_all_steps() -> None:
    document = grouping(MERGE)
    assert plan(document)["log_size"] is True
    more = with_step(document, layers=[4, 5], action={"kind": "merge", "log_size": False})
    refused(more, "$.steps[1].action.log_size: found false; allowed: the same as in $.steps[0]")
    for step in more["steps"]:
        step["action"]["log_size"] = False
    assert plan(more)["log_size"] is False


def test_keys_are_compared_first_in_their_layer() -> None:
    document = grouping(MERGE, of="keys")
    assert plan(document)["scores"] == [{"kind": "similarity", "of": "keys", "attention": 0.0}]
    for site, layers in (("pre", [2, 3]), ("post", [2, 3]), ("embed", [0])):
        refused(grouping(MERGE, of="keys", site=site, layers=layers), "$.steps[0].site", site)
        assert parse_policy(grouping(MERGE, site=site, layers=layers)).steps
    refused(with_step(document), "$.steps[1].score", "after $.steps[0] at layer 2")
    document["scores"]["other"] = {"kind": "attn_col"}
    drop = {"score": "other", "select": TOPK, "action": {"kind": "drop"}}
    late = with_step(document, first=True, layers=[1, 3], **drop)
    refused(late, "$.steps[1].score", "after $.steps[0] at layer 3")
    for allowed in (
        with_step(document, **drop),
        with_step(document, first=True, layers=[1, 4], **drop),
        with_step(document, first=True, site="post", **drop),
    ):
        assert len(parse_policy(allowed).steps) == 2
    late["scores"]["imp"]["of"] = "hidden"
    assert len(parse_policy(late).steps) == 2


def test_similarity_has_no_other_fields() -> None:
    assert plan(grouping(POOL))["scores"] == [{"kind": "uniform"}]
    assert plan(grouping(MERGE))["scores"] == [
        {"kind": "similarity", "of": "hidden", "attention": 0.0}
    ]


# Profiles


@pytest.mark.parametrize(
    ("select", "override"),
    [
        (MERGE, {"ratio": [0.75, 0.5]}),
        (MERGE, {"ratio": 0.5, "of": "n0", "round": "round"}),
        ({"kind": "bipartite", "theta": 0.9}, {"theta": 0.5, "min_tokens": 4}),
        ({"kind": "energy_pairs", "ratio": 0.9, "margin": 0.5}, {"margin": 0.25, "alpha": 2}),
        (POOL, {"stride": [2, 4]}),
        ({"kind": "pool", "ratio": 0.5}, {"ratio": 0.25, "max_tokens": 9}),
    ],
)
def test_profiles_override_numbers(select: Document, override: Document) -> None:
    document = {**grouping(select), "profiles": {"fast": {"steps": [override]}}}
    plain, fast = (plan(document, name)["steps"][1]["select"] for name in (None, "fast"))
    expected = {key: v[1] if isinstance(v, list) else v for key, v in override.items()}
    assert fast == {**plain, **expected} != plain


@pytest.mark.parametrize(
    ("select", "override", "fragment"),
    [
        (MERGE, {"theta": 0.5}, ".theta: found an unknown field"),
        ({"kind": "bipartite", "theta": 0.9}, {"ratio": 0.5}, ".ratio: found an unknown field"),
        (POOL, {"ratio": 0.5}, ".ratio: found an unknown field"),
        (POOL, {"of": "n0"}, ".of: found an unknown field"),
        (POOL, {"stride": 1}, ".stride: found 1; allowed: an integer >= 2"),
    ],
)
def test_profiles_keep_the_rule_of_a_step(
    select: Document, override: Document, fragment: str
) -> None:
    document = {**grouping(select), "profiles": {"fast": {"steps": [override]}}}
    refused(document, f"$.profiles.fast.steps[0]{fragment}")


def test_theta_scale_leaves_similarities_alone() -> None:
    document = preset("ltmp", layers=6, profiles={"fast": {"theta_scale": 2}})
    plain, fast = (plan(document, name)["steps"] for name in (None, "fast"))
    assert [s["select"]["theta"] for s in fast[::2]] == [0.85] * 6
    assert [s["select"]["theta"] for s in fast[1::2]] == [
        2 * s["select"]["theta"] for s in plain[1::2]
    ]
    alone = {**grouping({"kind": "bipartite", "theta": 0.9}), "profiles": document["profiles"]}
    refused(alone, "$.profiles.fast.theta_scale", '"threshold"')


# Outputs


@pytest.mark.parametrize("select", [MERGE, POOL])
def test_a_mean_is_weighted_by_size_unless_the_policy_says_otherwise(select: Document) -> None:
    def output(document: Document, kind: str | None) -> Any:
        policy = parse_policy(document)
        bound = bind_policy(policy, ModelInfo(6, 100, 64, output=kind))
        assert policy_hash(bound) == policy_hash(policy)
        return (compile_plan(bound) or {})["output"]

    document = grouping(select)
    del document["output"]
    assert output(document, "mean") == {"kind": "mean", "over": "size"}
    assert output(document, "cls") == {"kind": "cls", "over": "kept"}
    assert output(document, None) == {"kind": "none", "over": "kept"}
    for over in ("kept", "size"):
        document["output"] = {"kind": "mean", "over": over}
        assert output(document, "mean") == document["output"]


@pytest.mark.parametrize("select", [MERGE, POOL])
def test_tokens_cannot_be_restored(select: Document) -> None:
    for output in ({"kind": "tokens_restored"}, {"kind": "span"}):
        refused(grouping(select, output=output), "$.steps[0].action.kind", '"restore"')
    refused(grouping(select, output={"kind": "mean", "over": "restored"}), "$.steps[0].action.kind")
    document = grouping(select)
    del document["output"]
    with pytest.raises(PolicyError, match=r"\$\.steps\[0\]\.action\.kind"):
        bind_policy(parse_policy(document), ModelInfo(6, 100, 64, output="span"))
    refused(grouping(select, protect={}), "$.output.kind", '"cls"')


# Words


@pytest.mark.parametrize(
    ("select", "words"),
    [
        (MERGE, "most similar to one of the rest leave, until 90% of the tokens still there"),
        ({"kind": "bipartite", "theta": [0.9, 0.8]}, "more similar than 0.9 / 0.8 to one of"),
        (
            {"kind": "all_pairs", "ratio": 0.7},
            "the tokens most similar to another leave, until 70% of the tokens still there",
        ),
        ({"kind": "all_pairs", "theta": 0.9}, "tokens more similar than 0.9 to another leave"),
        (
            {"kind": "energy_pairs", "ratio": 0.75, "of": "n0", "margin": 0.5},
            "(similar: from 0.5 on) leave, until 75% of the input's tokens are left",
        ),
        (POOL, "every 2 neighbours become one row"),
        ({"kind": "pool", "ratio": 0.5, "max_tokens": 9}, "tokens still there are left, at most 9"),
    ],
)
def test_words(select: Document, words: str) -> None:
    document = grouping(select, of="keys")
    lines = policy_words(parse_policy(document))
    assert words in lines[0]
    assert ("merged into the row it resembles most" in lines[0]) == (select["kind"] != "pool")
    assert lines[1] == "a row attracts attention for all tokens it stands for"
    assert lines[2].startswith('score "imp": ')
    document["steps"][0]["action"]["log_size"] = False
    assert policy_words(parse_policy(document)) == [lines[0], *lines[2:]]


# Presets


def steps_of(name: str, /, **params: Any) -> list[Document]:
    return plan(preset(name, **{"layers": 6, **params}))["steps"]


def column(steps: list[Document], field: str) -> list[Any]:
    return [step["select"][field] for step in steps]


@pytest.mark.parametrize("name", GROUPING_PRESETS)
def test_presets_have_their_action(name: str) -> None:
    with pytest.raises(TypeError, match="unknown parameter 'action'"):
        preset(name, layers=6, action="drop")


@pytest.mark.parametrize(("name", "kind"), [("tome", "bipartite"), ("pitome", "energy_pairs")])
def test_merging_presets(name: str, kind: str) -> None:
    steps = steps_of(name)
    assert [step["layer"] for step in steps] == list(range(6))
    assert {(s["site"], s["action"], s["select"]["kind"]) for s in steps} == {
        ("mid", "merge", kind)
    }
    assert column(steps, "ratio") == [0.9] * 6
    assert [step["layer"] for step in steps_of(name, ratio=[0.8, 0.7])] == [4, 5]
    assert [step["layer"] for step in steps_of(name, ratio=0.8, locations=[1, 3])] == [1, 3]
    for metric in ("keys", "hidden"):
        document = preset(name, layers=6, metric=metric)
        assert plan(document)["scores"] == [{"kind": "similarity", "of": metric, "attention": 0.0}]
    assert plan(preset(name, layers=6))["scores"][0]["of"] == "keys"
    with pytest.raises(PolicyError, match=r"\$\.scores\.similarity\.of"):
        preset(name, layers=6, metric="values")
    with pytest.raises(PolicyError, match="ratio"):
        preset(name, layers=6, ratio=1.5)


def test_pitome_margins() -> None:
    margins = column(steps_of("pitome", layers=12, locations=[0, 4, 11]), "margin")
    assert margins == pytest.approx([0.9, 0.6, 0.075])
    assert column(steps_of("pitome", margin=0.5), "margin") == [0.5] * 6
    assert column(steps_of("pitome", ratio=[0.9, 0.8], margin=[0.5, 0.4]), "margin") == [0.5, 0.4]


def test_ltmp_merges_then_drops() -> None:
    document = preset("ltmp", layers=6, merge_theta=0.8, theta=[0.01, 0.02], protect_last=True)
    steps = plan(document)["steps"]
    assert [(s["layer"], s["action"], s["select"]["theta"]) for s in steps] == [
        (4, "merge", 0.8),
        (4, "drop", 0.01),
        (5, "merge", 0.8),
        (5, "drop", 0.02),
    ]
    scores = parse_policy(document).scores
    assert scores["similarity"].of == "keys" and scores["importance"].norm == "alive"
    assert not parse_policy(preset("ltmp", layers=6, theta=0.01)).protect.last


def test_ltmp_untrained() -> None:
    steps = steps_of("ltmp")
    assert [step["layer"] for step in steps[::2]] == list(range(6))
    assert column(steps[1::2], "theta") == pytest.approx([0.5 * i / 6 for i in range(6)])
    policy = parse_policy(preset("ltmp", layers=6, merge_theta=[0.9, 0.8], norm="n0"))
    assert policy.scores["importance"].norm == "n0" and policy.protect.last
    assert policy.steps[0].layers == policy.steps[1].layers == (4, 5)


def test_pooling_presets() -> None:
    (step,) = steps_of("mid-pool")
    assert (step["layer"], step["site"], step["action"]) == (2, "post", "pool")
    assert (step["select"]["stride"], step["select"]["ratio"]) == (2, None)
    (step,) = steps_of("mid-pool", ratio=0.25, layer=6)
    assert (step["layer"], step["select"]["stride"], step["select"]["ratio"]) == (5, 0, 0.25)
    assert steps_of("mid-pool", layers=1)[0]["layer"] == 0
    (step,) = steps_of("jasper-pool", ratio=0.25)
    assert (step["layer"], step["site"], step["select"]["ratio"]) == (0, "embed", 0.25)
    with pytest.raises(PolicyError, match="exactly one of"):
        preset("mid-pool", layers=6, ratio=0.5, stride=2)
    for layer in (0, 7, 2.0):
        with pytest.raises(PolicyError, match="layer: found"):
            preset("mid-pool", layers=6, layer=layer)


def test_similarity_weighed_by_attention() -> None:
    document = grouping(MERGE)
    document["scores"]["imp"]["attention"] = 0.1
    assert plan(document)["scores"][0]["attention"] == 0.1
    assert "weighed by attention" in " ".join(policy_words(parse_policy(document)))
    for site, layer in (("pre", 1), ("embed", 0)):
        found = f'$.steps[1].site: found "{site}" at layer {layer} for similarity'
        refused(with_step(document, site=site, layers=[layer]), found)
    pairs: Document = {"kind": "energy_pairs", "ratio": 0.9, "margin": 0.5}
    refused(with_step(document, select=pairs), '$.steps[1].select.kind: found "energy_pairs"')
    document["scores"]["imp"]["attention"] = -1
    refused(document, "$.scores.imp.attention: found -1")
