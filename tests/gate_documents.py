"""Policies for three layers whose scores or counts come from networks, and from entropies."""

from __future__ import annotations

from typing import Any

import gates


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
DROP = {"kind": "drop"}
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
        "predicted": predicted(width, "embed", [0]),
        "predicted restore": predicted(width, "pre", [0, 2], "restore"),
        "predicted package": predicted(width, "post", [0, 1], "package"),
        "entropies": entropies(),
    }


RATIOS = [0.25, 0.75, 0.5]


def predicted(
    width: int, site: str, layers: list[int], action: str = "drop", **select: Any
) -> dict[str, Any]:
    """A gate whose count another network chooses."""
    choice = {"kind": "predicted_ratio", "ratios": RATIOS, "tensor": "p", **select}
    result = document(width, site, layers, choice, action)
    networks = {i: gates.perceptron(width, 33, len(RATIOS), 9 + i) for i in layers}
    result["tensors"] |= gates.tensors("p", networks)
    return result


def entropies() -> dict[str, Any]:
    """Both entropies, at every site that has them."""
    steps = [
        ("row", [0], "mid", {"kind": "ratio", "ratio": 0.9}),
        ("row", [1], "post", {"kind": "threshold_rel", "t": 0.9, "of": "mean"}),
        ("column", [1, 2], "mid", {"kind": "quantile", "q": 0.2}),
        ("before", [2], "pre", {"kind": "ratio", "ratio": 0.8}),
    ]
    return {
        "format": "token-policy",
        "version": 1,
        "layers": 3,
        "protect": {"first": True},
        "scores": {
            "row": {"kind": "row_entropy", "heads": "max"},
            "column": {"kind": "col_entropy", "sign": -1},
            "before": {"kind": "col_entropy", "from": "previous", "heads": "sum"},
        },
        "steps": [
            {"layers": at, "site": site, "score": score, "select": select, "action": DROP}
            for score, at, site, select in steps
        ],
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
