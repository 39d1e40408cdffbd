"""The policies that `reranking.py` compares: the query stays, tokens of the document leave.

Each has one number, its strength from 0 (nothing leaves) to 1, by which all of them are brought to
the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tokprune_rt.loading import load
from tokprune_rt.policy.preset_parts import Document
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train.evaluating import run_texts

LAYERS, SEPARATOR = 6, 102
# Drop and merge in all layers but the first and the last, of which only the first row is computed.
_PLACES = list(range(1, LAYERS - 1))

_GRID = np.linspace(0, 0.99, 23)

Made = tuple[Document, Document]
"""A policy, and the numbers of its one step, as a profile would override them."""


def _policy(score: Document, step: Document, numbers: Document) -> Made:
    select = {**step["select"], **numbers}
    policy = {
        "format": "token-policy",
        "version": 1,
        "layers": LAYERS,
        "protect": {"first": True, "token_ids": [SEPARATOR], "segment": 0},
        "scores": {"score": score},
        "steps": [{**step, "score": "score", "select": select}],
    }
    return policy, numbers


def _drop(score: Document) -> Callable[[float], Made]:
    """In each layer a share of the document's tokens that are still there leaves."""
    step = {
        "layers": _PLACES,
        "site": "mid",
        "select": {"kind": "quantile"},
        "action": {"kind": "drop"},
    }
    return lambda strength: _policy(score, step, {"q": round(strength, 4)})


def _merge(strength: float) -> Made:
    """Every other token may merge, so half of the document is left in a layer at least."""
    step = {
        "layers": _PLACES,
        "site": "mid",
        "select": {"kind": "bipartite"},
        "action": {"kind": "merge"},
    }
    score = {"kind": "similarity", "of": "hidden"}
    return _policy(score, step, {"ratio": round(1 - strength / 2, 4)})


def _pool(after: int) -> Callable[[float], Made]:
    """Once, after so many layers, neighbours become their means."""
    step = {
        "layers": [after - 1],
        "site": "post",
        "select": {"kind": "pool"},
        "action": {"kind": "pool"},
    }
    return lambda strength: _policy({"kind": "uniform"}, step, {"ratio": round(1 - strength, 4)})


METHODS: dict[str, Callable[[float], Made]] = {
    "random": _drop({"kind": "random"}),
    "attention, all rows": _drop({"kind": "attn_col"}),
    "attention, query rows": _drop({"kind": "attn_col", "query": {"segment": 0}}),
    "merge": _merge,
    "pool after layer 1": _pool(1),
    "pool after layer 3": _pool(LAYERS // 2),
}
# A score that follows chance, and rows that stand for several, exist only in the runtime.
LEARNABLE = ("attention, all rows", "attention, query rows")


def at_equal_work(
    folder: Path, tokens: list[Tokens], name: str, targets: list[float]
) -> dict[str, Any] | None:
    """The policy with a profile for each of ``targets`` (dense multiply-adds by its own) that it
    reaches on ``tokens``; None if it reaches none."""
    method = METHODS[name]
    grid = {f"{strength:.3f}": {"steps": [method(strength)[1]]} for strength in _GRID}
    policy, _ = method(0.0)
    model = load(folder, {**policy, "profiles": grid})
    passes = [run_texts(model, tokens, strength) for strength in grid]
    saved = np.maximum.accumulate([found.macs_dense / found.macs for found in passes])
    profiles = {
        f"{target:g}x": {"steps": [method(float(np.interp(target, saved, _GRID)))[1]]}
        for target in targets
        if target <= saved[-1]
    }
    return {**policy, "name": name, "profiles": profiles} if profiles else None
