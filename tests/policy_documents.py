"""Policy documents and helpers that the policy tests share."""

from __future__ import annotations

import copy
from typing import Any

import gates
import numpy as np
import pytest

from tokprune_rt.policy import ModelInfo, PolicyError, compile_plan, parse_policy

Document = dict[str, Any]

MODEL = ModelInfo(layers=6, vocab_size=100, max_positions=64)


def example(**changes: Any) -> Document:
    document: Document = {
        "format": "token-policy",
        "version": 1,
        "layers": 6,
        "protect": {"first": True, "token_ids": [7]},
        "limits": {"min_tokens": 2, "skip_below": 16},
        "scores": {"imp": {"kind": "attn_col", "norm": "unprotected"}},
        "steps": [
            {
                "layers": [2, 3, 4],
                "site": "mid",
                "score": "imp",
                "select": {"kind": "threshold", "theta": [0.3, 0.4, 0.5]},
                "action": {"kind": "drop"},
            }
        ],
        "profiles": {"fast": {"theta_scale": 1.5}},
        "output": {"kind": "cls"},
        "provenance": {"method": "ltp", "metric": {"dense": 0.9, "pruned": None}},
    }
    document.update(changes)
    return document


def one_step(select: Document, score: Document | None = None, **changes: Any) -> Document:
    """Document with a single step at layers 2 and 3 and no profile."""
    step: Document = {
        "layers": [2, 3],
        "site": "mid",
        "score": "imp",
        "select": select,
        "action": {"kind": "drop"},
    }
    step.update({key: changes.pop(key) for key in ("layers", "site") if key in changes})
    if "action" in changes:
        step["action"] = {"kind": changes.pop("action")}
    scores = {"imp": score or {"kind": "attn_col"}}
    return example(scores=scores, steps=[step], profiles={}, **changes)


def grouping(select: Document, of: str = "hidden", **changes: Any) -> Document:
    """`one_step` with the score and the action that go with a selection that groups tokens."""
    pools = select["kind"] == "pool"
    score = {"kind": "uniform"} if pools else {"kind": "similarity", "of": of}
    return one_step(select, score, action="pool" if pools else "merge", **changes)


def put(document: Document, path: tuple[str | int, ...], value: Any) -> Document:
    result = copy.deepcopy(document)
    place: Any = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return result


def refused(document: Document, *fragments: str, tensors: Any = None) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(document, tensors)
    for fragment in fragments:
        assert fragment in str(caught.value)


def plan(document: Document, profile: str | None = None) -> dict[str, Any]:
    result = compile_plan(parse_policy(document), profile)
    assert result is not None
    return result


TOPK: Document = {"kind": "topk", "k": 4}
"""A selection that needs nothing else."""

SELECTS: list[tuple[Document, Document]] = [
    ({"kind": "topk", "k": [5, 3]}, {"k": 3}),
    ({"kind": "ratio", "ratio": 0.5}, {"ratio": 0.5, "of": "n", "round": "ceil"}),
    (
        {"kind": "ratio", "ratio": [1, 0], "of": "n0", "round": "floor"},
        {"ratio": 0.0, "of": "n0", "round": "floor"},
    ),
    ({"kind": "threshold", "theta": [0.1, -1]}, {"theta": 0.0}),
    ({"kind": "threshold", "theta": 1, "floor": [3, 0.5]}, {"theta": 1.0}),
    ({"kind": "threshold_n", "eta": 2}, {"eta": 2.0}),
    ({"kind": "threshold_rel", "t": 0.2}, {"t": 0.2, "of": "max"}),
    ({"kind": "threshold_rel", "t": 1.2, "of": "mean"}, {"t": 1.2, "of": "mean"}),
    ({"kind": "quantile", "q": 0.25}, {"q": 0.25}),
    ({"kind": "top_p", "p": [0.9, 0.8]}, {"p": 0.8}),
    (
        {"kind": "rank_bins", "bits": [[1, 0], [1, 1]]},
        {"bits": [1, 1], "bin_rule": "int"},
    ),
    (
        {"kind": "rank_bins", "bits": [[1, 0], [0, 1]], "bin_rule": "float32"},
        {"bits": [0, 1], "bin_rule": "float32"},
    ),
]
"""Every selector, and what its second layer compiles to."""

_SHARE = {"ratio": 0.5, "of": "n", "round": "ceil"}

GROUPS: list[tuple[Document, Document]] = [
    ({"kind": "bipartite", "ratio": [0.9, 0.5]}, {**_SHARE, "theta": None}),
    (
        {"kind": "bipartite", "ratio": 0.8, "of": "n0", "round": "floor"},
        {"ratio": 0.8, "of": "n0", "round": "floor", "theta": None},
    ),
    ({"kind": "bipartite", "theta": [1, -0.5]}, {**_SHARE, "ratio": None, "theta": -0.5}),
    ({"kind": "all_pairs", "theta": [1, -0.5]}, {**_SHARE, "ratio": None, "theta": -0.5}),
    (
        {"kind": "energy_pairs", "ratio": 0.5, "margin": [0.9, 0.75]},
        {**_SHARE, "margin": 0.75, "alpha": 1.0},
    ),
    (
        {"kind": "energy_pairs", "ratio": 0.5, "margin": -1, "alpha": [1, 0]},
        {**_SHARE, "margin": -1.0, "alpha": 0.0},
    ),
    ({"kind": "pool", "ratio": 0.5, "round": "round"}, {**_SHARE, "round": "round", "stride": 0}),
    ({"kind": "pool", "stride": [4, 2]}, {**_SHARE, "ratio": None, "stride": 2}),
]
"""The same for selectors that group tokens."""

GROUPING_PRESETS = ("tome", "pitome", "ltmp", "mid-pool", "jasper-pool")
"""Presets that merge or pool."""


def needed(name: str, layers: Any) -> Document:
    """Parameters without which a preset cannot be made."""
    depth = layers if isinstance(layers, int) and layers > 0 else 1
    if name == "static-idf":
        return {"idf": np.ones(100, np.float32)}
    if name == "transkimmer":
        return {"gates": gates.perceptrons(max(depth - 1, 1), 8, 8, 2)}
    if name == "adapler":
        return {"gates": gates.perceptrons(depth, 8, 3, 1), "eta": 0.5}
    if name == "tr-bert":
        return {"gates": gates.perceptrons(1 if depth < 4 else 2, 8, 3, 2)}
    if name == "ad-tp":
        network, choice = gates.perceptron(8, 3, 1), gates.perceptron(8, 5, 2)
        return {"gate": network, "predictor": choice, "ratios": [0.5, 0.25]}
    return {}
