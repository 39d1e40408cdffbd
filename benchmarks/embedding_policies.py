"""Policies that the embedding benchmarks compare, by method and strength, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from quality import LAYERS, SEPARATOR, Vectors

from tokprune_rt import Model, _core
from tokprune_rt.calibration.families import FAMILIES
from tokprune_rt.calibration.passes import Passes
from tokprune_rt.loading import choose_policy
from tokprune_rt.outputs import dense_macs
from tokprune_rt.policy import Policy, PolicySource, compile_plan, preset
from tokprune_rt.tokenizer import Tokens

Document = dict[str, Any]

_HALVINGS = 9
# All methods but pooling act in every layer. (Dropping from layer 1 or 2 on instead is better by
# .005 at 1.25x and worse at 2x.)
_EVERYWHERE = list(range(LAYERS))


def _score(score: Mapping[str, Any], keep: float, action: str = "drop") -> Document:
    """One share of the tokens stays at each of the layers, by a score."""
    return {
        "format": "token-policy",
        "version": 1,
        "layers": LAYERS,
        "protect": {"first": True, "token_ids": [SEPARATOR]},
        "scores": {"score": dict(score)},
        "steps": [
            {
                "layers": _EVERYWHERE,
                "site": "mid",
                "score": "score",
                "select": {"kind": "ratio", "ratio": keep},
                "action": {"kind": action},
            }
        ],
    }


_RECEIVED = {"kind": "attn_col", "norm": "unprotected"}


def _over(document: Document, over: str) -> Document:
    return {**document, "output": {"kind": "mean", "over": over}}


def _unbiased(document: Document) -> Document:
    steps = [{**s, "action": {**s["action"], "log_size": False}} for s in document["steps"]]
    return {**document, "steps": steps}


def _weighed(document: Document) -> Document:
    """Similar tokens that receive little attention merge first, as `tokprune calibrate` does."""
    score = FAMILIES["merge-weighed"].score
    return {**document, "scores": {name: score for name in document["scores"]}}


def _all_pairs(document: Document) -> Document:
    """What merges is taken from all pairs, as `tokprune calibrate` does."""
    steps = [
        {**s, "select": {**s["select"], "kind": FAMILIES["merge-weighed"].select}}
        for s in document["steps"]
    ]
    return {**document, "steps": steps}


def _merge(keep: float, metric: str = "hidden", **options: Any) -> Document:
    return preset("tome", layers=LAYERS, ratio=keep, metric=metric, **options)


METHODS: dict[str, Callable[[float], Document]] = {
    "random drop": lambda keep: _score({"kind": "random"}, keep),
    "drop": lambda keep: _score(_RECEIVED, keep),
    "drop, restored mean": lambda keep: _over(_score(_RECEIVED, keep, "restore"), "restored"),
    "quantile": lambda keep: preset(
        "quantile",
        layers=LAYERS,
        q=1 - keep,
        locations=_EVERYWHERE,
        protect_token_ids=[SEPARATOR],
    ),
    "pool first (jasper)": lambda keep: preset("jasper-pool", layers=LAYERS, ratio=keep),
    "pool halfway": lambda keep: preset("mid-pool", layers=LAYERS, ratio=keep),
    "merge keys (tome)": lambda keep: _merge(keep, "keys"),
    "pitome": lambda keep: preset("pitome", layers=LAYERS, ratio=keep, metric="hidden"),
    "merge": _merge,
    "merge, by attention, too": lambda keep: _weighed(_merge(keep)),
    "merge, all pairs, by attention": lambda keep: _all_pairs(_weighed(_merge(keep))),
    "merge, kept mean": lambda keep: _over(_merge(keep), "kept"),
    "merge, no log-size bias": lambda keep: _unbiased(_merge(keep)),
    "merge, skip_below 32": lambda keep: _merge(keep, skip_below=32),
}
"""Name -> policy in which each step leaves this share of the tokens.

What merges compares hidden states unless the name says keys, which are worse by far.
"""

VARIANTS = {
    "merge, kept mean": "merge",
    "merge, no log-size bias": "merge",
    "merge, skip_below 32": "merge",
    "drop, restored mean": "drop",
}
"""Methods that take the strength of another, so that only the difference itself is seen."""


@dataclass(frozen=True)
class Embedded:
    """Unit vectors float32 [n, d] in the order of the texts, and the multiply-adds' share."""

    vectors: Vectors
    macs: float


def policy_of(model: Model, source: PolicySource) -> Policy | None:
    """What `tokprune_rt.load` would take for this model."""
    return choose_policy(source, model.folder, model.config, model.setup)


def plan_of(model: Model, policy: PolicySource, profile: str | None = None) -> _core.Plan | None:
    """A policy ready for `embed`; one model runs any number of them."""
    chosen = policy_of(model, policy)
    compiled = None if chosen is None else compile_plan(chosen, profile)
    return None if compiled is None else _core.Plan(compiled)


def embed(model: Model, tokens: Sequence[Tokens], plan: _core.Plan | None) -> Embedded:
    """Embeddings under a plan, dense without one."""
    found, macs = Passes(model, tokens).run(plan)
    vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
    return Embedded(vectors, macs / dense_work(model, tokens))


def dense_work(model: Model, tokens: Sequence[Tokens]) -> int:
    """Multiply-adds of the dense encoder layers."""
    lengths = np.array([len(item) for item in tokens], np.int64)
    config = model.config
    return dense_macs(lengths, config.layers, config.hidden, config.intermediate)


def strength_for(
    model: Model, sample: Sequence[Tokens], method: Callable[[float], Document], speedup: float
) -> float | None:
    """The share kept per step at which the multiply-adds fall by ``speedup`` on the sample.

    None where not even the strongest setting reaches it.
    """
    low, high = 0.02, 1.0
    if 1 / embed(model, sample, plan_of(model, method(low))).macs < speedup:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if 1 / embed(model, sample, plan_of(model, method(middle))).macs >= speedup:
            low = middle
        else:
            high = middle
    return round(low, 4)
