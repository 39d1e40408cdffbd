"""The policy format: which documents are read, and how the others are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from policy_documents import (
    GROUPS,
    SELECTS,
    Document,
    example,
    grouping,
    one_step,
    plan,
    put,
    refused,
)

from tokprune_rt.policy import compile_plan, parse_policy


def test_parses_every_part() -> None:
    policy = parse_policy(example(name="mine"))
    assert (policy.name, policy.layers) == ("mine", 6)
    assert policy.protect.first and policy.protect.token_ids == (7,)
    assert (policy.limits.min_tokens, policy.limits.skip_below) == (2, 16)
    assert policy.scores["imp"].norm == "unprotected"
    assert policy.steps[0].select.values["theta"] == (0.3, 0.4, 0.5)
    assert policy.profiles["fast"].theta_scale == 1.5
    assert policy.output is not None and policy.output.kind == "cls"
    assert policy.provenance["metric"]["pruned"] is None


def test_only_format_version_and_layers_are_required() -> None:
    minimal = {"format": "token-policy", "version": 1, "layers": 2}
    policy = parse_policy(minimal)
    assert policy.steps == () and policy.output is None
    assert compile_plan(policy) is None
    for key in minimal:
        without = {k: v for k, v in minimal.items() if k != key}
        refused(without, "$", f'no field "{key}"')


PLACES: list[tuple[tuple[str | int, ...], str]] = [
    ((), "$.bogus"),
    (("protect",), "$.protect.bogus"),
    (("limits",), "$.limits.bogus"),
    (("scores", "imp"), "$.scores.imp.bogus"),
    (("steps", 0), "$.steps[0].bogus"),
    (("steps", 0, "select"), "$.steps[0].select.bogus"),
    (("steps", 0, "action"), "$.steps[0].action.bogus"),
    (("profiles", "fast"), "$.profiles.fast.bogus"),
    (("output",), "$.output.bogus"),
]


@pytest.mark.parametrize(("place", "path"), PLACES)
def test_unknown_fields_are_refused_everywhere(place: tuple[str | int, ...], path: str) -> None:
    refused(put(example(), (*place, "bogus"), 41), path, "unknown field", "41", "allowed")


def test_provenance_is_free() -> None:
    policy = parse_policy(example(provenance={"any": [{"thing": [1, 2.5, None, True]}]}))
    assert policy.provenance == {"any": [{"thing": [1, 2.5, None, True]}]}
    refused(example(provenance={"a": {1, 2}}), "$.provenance.a", "set")
    refused(example(provenance={"a": [float("nan")]}), "$.provenance.a[0]", "nan")


BAD_VALUES: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("format",), "policy", "$.format"),
    (("version",), 2, "$.version"),
    (("version",), True, "$.version"),
    (("version",), "1", "$.version"),
    (("layers",), 0, "$.layers"),
    (("layers",), 6.0, "$.layers"),
    (("name",), "", "$.name"),
    (("protect",), [], "$.protect"),
    (("protect", "first"), 1, "$.protect.first"),
    (("protect", "last"), None, "$.protect.last"),
    (("protect", "token_ids"), 7, "$.protect.token_ids"),
    (("protect", "token_ids"), [7, -1], "$.protect.token_ids[1]"),
    (("protect", "token_ids"), [2**31], "$.protect.token_ids[0]"),
    (("protect", "segment"), -1, "$.protect.segment"),
    (("limits", "min_tokens"), 0, "$.limits.min_tokens"),
    (("limits", "max_tokens"), 0, "$.limits.max_tokens"),
    (("limits", "max_tokens"), 1, "min_tokens 2 above max_tokens 1"),
    (("limits", "skip_below"), 1.5, "$.limits.skip_below"),
    (("dead_first",), True, "$.dead_first"),
    (("dead_first",), "passive", "$.dead_first"),
    (("scores",), [], "$.scores"),
    (("scores", "imp"), "attn_col", "$.scores.imp"),
    (("scores", "imp", "kind"), "attention", "$.scores.imp.kind"),
    (("scores", "imp", "heads"), "median", "$.scores.imp.heads"),
    (("scores", "imp", "diagonal"), "out", "$.scores.imp.diagonal"),
    (("scores", "imp", "query"), "last", "$.scores.imp.query"),
    (("scores", "imp", "query"), {"segment": -1}, "$.scores.imp.query.segment"),
    (("scores", "imp", "query"), {}, "$.scores.imp.query"),
    (("scores", "imp", "norm"), "max", "$.scores.imp.norm"),
    (("scores", "imp", "norm"), "const", "$.scores.imp.n"),
    (("scores", "imp", "n"), 128, "$.scores.imp.n"),
    (("scores", "imp", "from"), "next", "$.scores.imp.from"),
    (("scores", "imp"), {"kind": "row_entropy", "sign": 0}, "$.scores.imp.sign"),
    (("scores", "imp"), {"kind": "row_entropy", "sign": 2}, "$.scores.imp.sign"),
    (("scores", "imp"), {"kind": "col_entropy", "sign": -1.0}, "$.scores.imp.sign"),
    (("scores", "imp"), {"kind": "col_entropy", "norm": "none"}, "$.scores.imp.norm"),
    (("scores", "imp"), {"kind": "row_entropy", "heads": "min"}, "$.scores.imp.heads"),
    (("scores", "imp"), {"kind": "similarity", "of": "values"}, "$.scores.imp.of"),
    (("scores", "imp"), {"kind": "similarity", "heads": "mean"}, "$.scores.imp.heads"),
    (("scores", "imp"), {"kind": "uniform", "of": "hidden"}, "$.scores.imp.of"),
    (("steps",), {}, "$.steps"),
    (("steps", 0), None, "$.steps[0]"),
    (("steps", 0, "layers"), 2, "$.steps[0].layers"),
    (("steps", 0, "layers"), [], "$.steps[0].layers"),
    (("steps", 0, "layers"), [2, 2, 3], "$.steps[0].layers"),
    (("steps", 0, "layers"), [3, 2, 4], "$.steps[0].layers"),
    (("steps", 0, "layers"), [2, 3, 6], "$.steps[0].layers[2]"),
    (("steps", 0, "site"), "after", "$.steps[0].site"),
    (("steps", 0, "site"), "embed", "$.steps[0].layers"),
    (("steps", 0, "score"), "other", "$.steps[0].score"),
    (("steps", 0, "select"), [], "$.steps[0].select"),
    (("steps", 0, "select"), {}, 'no field "kind"'),
    (("steps", 0, "select", "kind"), "best", "$.steps[0].select.kind"),
    (("steps", 0, "select"), {"kind": "threshold"}, 'no field "theta"'),
    (("steps", 0, "select", "theta"), [0.3, 0.4], "aligned with layers [2, 3, 4]"),
    (("steps", 0, "select", "theta"), "0.3", "$.steps[0].select.theta"),
    (("steps", 0, "select", "theta", 1), None, "$.steps[0].select.theta[1]"),
    (("steps", 0, "select", "theta", 1), float("nan"), "$.steps[0].select.theta[1]"),
    (("steps", 0, "select", "theta", 1), 10**400, "$.steps[0].select.theta[1]"),
    (("steps", 0, "select", "floor"), [0.1], "$.steps[0].select.floor"),
    (("steps", 0, "select", "min_tokens"), -1, "$.steps[0].select.min_tokens"),
    (("steps", 0, "select", "max_tokens"), 0, "$.steps[0].select.max_tokens"),
    (("steps", 0, "select", "max_tokens"), [9, 1, 9], "max_tokens 1 at layer 3"),
    (("steps", 0, "action"), "drop", "$.steps[0].action"),
    (("steps", 0, "action", "kind"), "remove", "$.steps[0].action.kind"),
    (("steps", 0, "action", "log_size"), True, "$.steps[0].action.log_size"),
    (("steps", 0, "action"), {"kind": "merge", "log_size": 1}, "$.steps[0].action.log_size"),
    (("profiles",), [], "$.profiles"),
    (("profiles", "off"), {}, "$.profiles.off"),
    (("profiles", "default"), {}, '$.profiles.default: found the name "default"'),
    (("profiles", ""), {}, 'allowed: any name except "", "off" and "default"'),
    (("profiles", "fast", "theta_scale"), -1, "$.profiles.fast.theta_scale"),
    (("profiles", "fast", "theta_scale"), float("inf"), "$.profiles.fast.theta_scale"),
    (("profiles", "fast", "steps"), [], "$.profiles.fast.steps"),
    (("profiles", "fast", "steps"), [None, None], "$.profiles.fast.steps"),
    (("profiles", "fast", "steps"), [{"k": 3}], "$.profiles.fast.steps[0].k"),
    (("profiles", "fast", "steps"), [{"kind": "topk"}], "$.profiles.fast.steps[0].kind"),
    (("profiles", "fast", "steps"), [{"theta": [1, 2]}], "$.profiles.fast.steps[0].theta"),
    (("profiles", "fast", "limits"), {"max": 3}, "$.profiles.fast.limits.max"),
    (("profiles", "fast", "limits"), {"max_tokens": 1}, "$.profiles.fast.steps[0]"),
    (("profiles", "fast", "limits"), {"min_tokens": 0}, "$.profiles.fast.limits.min_tokens"),
    (("profiles", "very fast"), 3, "$.profiles['very fast']"),
    (("output", "kind"), "last", "$.output.kind"),
    (("output", "over"), "kept", "$.output.over"),
]


@pytest.mark.parametrize(("place", "value", "fragment"), BAD_VALUES)
def test_bad_values_are_refused(place: tuple[str | int, ...], value: Any, fragment: str) -> None:
    refused(put(example(), place, value), fragment, "found", "allowed")


def test_document_must_be_an_object() -> None:
    values: tuple[Any, ...] = (None, [], "x", 3)
    for bad in values:
        refused(bad, "$", "an object")
    refused({1: 2}, "keys that are strings")  # type: ignore[dict-item]


def test_another_version_is_told_before_its_new_fields() -> None:
    refused(example(version=2, novelty=1), "$.version: found 2")


@pytest.mark.parametrize(("select", "expected"), SELECTS)
def test_selectors_compile(select: Document, expected: Document) -> None:
    second = plan(one_step(select))["steps"][1]
    common = {"kind": select["kind"], "min_tokens": 2, "max_tokens": 0}
    assert second["layer"] == 3
    assert second["select"] == {**common, **expected}


@pytest.mark.parametrize(("select", "expected"), GROUPS)
def test_selectors_that_group_compile(select: Document, expected: Document) -> None:
    second = plan(grouping(select))["steps"][1]
    common = {"kind": select["kind"], "min_tokens": 2, "max_tokens": 0}
    assert second["action"] == ("pool" if select["kind"] == "pool" else "merge")
    assert second["select"] == {**common, **expected}


BAD_SELECTS: list[tuple[Document, str]] = [
    ({"kind": "topk", "k": 1.5}, "select.k"),
    ({"kind": "topk", "k": [1, True]}, "select.k[1]"),
    ({"kind": "topk", "k": -1}, "select.k"),
    ({"kind": "ratio", "ratio": 1.01}, "select.ratio"),
    ({"kind": "ratio", "ratio": [0.5, -0.1]}, "select.ratio[1]"),
    ({"kind": "ratio", "ratio": 0.5, "of": "max"}, "select.of"),
    ({"kind": "ratio", "ratio": 0.5, "round": ["ceil", "ceil"]}, "select.round"),
    ({"kind": "threshold_n", "theta": 1}, "select.theta"),
    ({"kind": "threshold_rel", "t": 1, "of": "n"}, "select.of"),
    ({"kind": "quantile", "q": 2}, "select.q"),
    ({"kind": "top_p", "p": -0.1}, "select.p"),
    ({"kind": "rank_bins", "bits": 1}, "select.bits"),
    ({"kind": "rank_bins", "bits": [[1, 0]]}, "select.bits"),
    ({"kind": "rank_bins", "bits": [[1, 0], [1]]}, "select.bits[1]"),
    ({"kind": "rank_bins", "bits": [[], []]}, "select.bits[0]"),
    ({"kind": "rank_bins", "bits": [[1, 2], [1, 0]]}, "select.bits[0][1]"),
    ({"kind": "rank_bins", "bits": [[1, 0], [1, False]]}, "select.bits[1][1]"),
    ({"kind": "rank_bins", "bits": [1, 0]}, "select.bits[0]"),
    ({"kind": "rank_bins", "bits": [[1], [1]], "bin_rule": "float64"}, "select.bin_rule"),
    ({"kind": "bipartite"}, "select"),
    ({"kind": "bipartite", "ratio": 0.9, "theta": 0.5}, "select"),
    ({"kind": "bipartite", "ratio": 1.1}, "select.ratio"),
    ({"kind": "bipartite", "theta": [0.5, 1.5]}, "select.theta[1]"),
    ({"kind": "bipartite", "theta": 0.5, "of": "n"}, "select.of"),
    ({"kind": "bipartite", "theta": 0.5, "stride": 2}, "select.stride"),
    ({"kind": "energy_pairs", "ratio": 0.9, "margin": [0.5]}, "select.margin"),
    ({"kind": "energy_pairs", "ratio": 0.9, "margin": 90}, "select.margin"),
    ({"kind": "energy_pairs", "ratio": 0.9, "margin": 0, "alpha": -1}, "select.alpha"),
    ({"kind": "energy_pairs", "theta": 0.9, "margin": 0}, "select.theta"),
    ({"kind": "pool", "max_tokens": 3}, "select"),
    ({"kind": "pool", "stride": 2, "ratio": 0.5}, "select"),
    ({"kind": "pool", "stride": 1}, "select.stride"),
    ({"kind": "pool", "stride": 2.0}, "select.stride"),
    ({"kind": "pool", "stride": [2, None]}, "select.stride[1]"),
    ({"kind": "pool", "stride": 2, "round": "floor"}, "select.round"),
]


@pytest.mark.parametrize(("select", "path"), BAD_SELECTS)
def test_bad_selectors(select: Document, path: str) -> None:
    refused(one_step(select), f"$.steps[0].{path}: found")


def test_fields_of_selectors_that_are_missing() -> None:
    refused(grouping({"kind": "energy_pairs", "ratio": 0.9}), 'no field "margin"')
    refused(grouping({"kind": "energy_pairs", "margin": 0.9}), 'no field "ratio"')
    for select, names in (
        ({"kind": "bipartite", "ratio": 1, "theta": 1}, '"ratio" and "theta"'),
        ({"kind": "pool"}, "none of them"),
    ):
        refused(grouping(select), f"$.steps[0].select: found {names}; allowed: exactly one of")


def test_numpy_numbers_are_numbers() -> None:
    policy = parse_policy(one_step({"kind": "topk", "k": np.int64(4), "min_tokens": np.int32(3)}))
    assert json.loads(json.dumps(policy.to_dict()))["steps"][0]["select"]["k"] == 4
