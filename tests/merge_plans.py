"""Plans that merge or pool, in the form that the engine takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import random_model as rm

Step = dict[str, Any]

HIDDEN: dict[str, Any] = {"kind": "similarity", "of": "hidden", "attention": 0.0}
KEYS: dict[str, Any] = HIDDEN | {"of": "keys"}
WEIGHED: dict[str, Any] = HIDDEN | {"attention": 0.2}
UNIFORM: dict[str, Any] = {"kind": "uniform"}
COLUMN = rm.score("attn_col")
SITES = ("embed", "pre", "mid", "post")
LIMITS = {"min_tokens": 1, "max_tokens": 0}


def bipartite(ratio: float | None = None, theta: float | None = None, **options: Any) -> Step:
    share = {"ratio": ratio, "of": "n", "round": "ceil", "theta": theta}
    return {"kind": "bipartite"} | LIMITS | share | options


def all_pairs(ratio: float | None = None, theta: float | None = None, **options: Any) -> Step:
    return bipartite(ratio, theta, **options) | {"kind": "all_pairs"}


def energy_pairs(ratio: float, margin: float, alpha: float = 1.0, **options: Any) -> Step:
    share = {"ratio": ratio, "of": "n", "round": "ceil", "margin": margin, "alpha": alpha}
    return {"kind": "energy_pairs"} | LIMITS | share | options


def pooling(ratio: float | None = None, stride: int = 0, **options: Any) -> Step:
    share = {"ratio": ratio, "of": "n", "round": "ceil", "stride": stride}
    return {"kind": "pool"} | LIMITS | share | options


def merge(layer: int, site: str, of: dict[str, Any], select: Step) -> Step:
    return _step(layer, site, of, "merge", select)


def pool(layer: int, site: str, select: Step) -> Step:
    return _step(layer, site, UNIFORM, "pool", select)


def drop(layer: int, site: str, ratio: float, score: dict[str, Any] = COLUMN) -> Step:
    select = {"kind": "ratio", "ratio": ratio, "of": "n", "round": "ceil"} | LIMITS
    return _step(layer, site, score, "drop", select)


def plan(*steps: Step, log_size: bool = True, over: str = "size", **changes: Any) -> dict[str, Any]:
    """A plan of three layers; the scores are those that its steps name."""
    scores: list[dict[str, Any]] = []
    numbered = []
    for step in sorted(steps, key=lambda step: (step["layer"], SITES.index(step["site"]))):
        if step["score"] not in scores:
            scores.append(step["score"])
        numbered.append(step | {"score": scores.index(step["score"])})
    output = {"kind": "mean", "over": over}
    made = rm.plan({}, numbered, **({"scores": scores, "output": output} | changes))
    return made | {"log_size": log_size}


def _step(layer: int, site: str, score: dict[str, Any], action: str, select: Step) -> Step:
    return {"layer": layer, "site": site, "score": score, "action": action, "select": select}


def every_layer(make: Any, *arguments: Any) -> list[Step]:
    return [make(layer, *arguments) for layer in range(rm.LAYERS)]


def plans() -> dict[str, dict[str, Any]]:
    """Plans for models of any width, by name."""
    later = range(1, rm.LAYERS)
    previous = rm.score("attn_col", **{"from": "previous"}, heads="max", diagonal=False)
    table = np.random.default_rng(5).random(1000, np.float32)
    last = {"protect": {"last": True}}
    nothing = {"protect": {"first": False}}
    return {
        # At mid, by keys or states.
        "keys ratio": plan(*every_layer(merge, "mid", KEYS, bipartite(0.75))),
        "hidden ratio of the input": plan(
            *(
                merge(i, "mid", HIDDEN, bipartite(r, of="n0", round="round"))
                for i, r in enumerate((0.9, 0.55, 0.35))
            ),
            **last,
        ),
        "weighed by attention": plan(
            *every_layer(merge, "mid", WEIGHED, bipartite(0.8)),
            *every_layer(merge, "mid", WEIGHED, bipartite(0.9)),
            merge(1, "post", WEIGHED | {"attention": 0.1}, bipartite(theta=0.4)),
        ),
        "keys weighed by attention": plan(
            *every_layer(merge, "mid", WEIGHED | {"of": "keys"}, bipartite(0.7)), **nothing
        ),
        "keys theta": plan(*every_layer(merge, "mid", KEYS, bipartite(theta=0.3))),
        "hidden theta": plan(*every_layer(merge, "mid", HIDDEN, bipartite(theta=0.35)), **nothing),
        "all pairs": plan(*every_layer(merge, "mid", HIDDEN, all_pairs(0.7)), **last),
        "all pairs of keys, weighed": plan(
            *every_layer(merge, "mid", WEIGHED | {"of": "keys"}, all_pairs(0.5)), **nothing
        ),
        "all pairs above theta": plan(
            merge(0, "embed", HIDDEN, all_pairs(theta=0.3, min_tokens=20)),
            merge(0, "post", WEIGHED, all_pairs(theta=0.4)),
            merge(1, "pre", HIDDEN, all_pairs(theta=2.0, max_tokens=16)),
            merge(2, "mid", HIDDEN, all_pairs(0.5, of="n0", min_tokens=3)),
        ),
        "keys energy": plan(*every_layer(merge, "mid", KEYS, energy_pairs(0.7, 0.2))),
        "hidden energy": plan(
            *every_layer(merge, "mid", HIDDEN, energy_pairs(0.8, 0.0, 0.5, round="floor")),
            **nothing,
        ),
        "pool ratio mid": plan(*every_layer(pool, "mid", pooling(0.7)), **last),
        "pool stride mid": plan(
            pool(0, "mid", pooling(stride=2)), pool(2, "mid", pooling(stride=3))
        ),
        # Between layers.
        "embed": plan(merge(0, "embed", HIDDEN, bipartite(0.6)), **nothing),
        "embed energy": plan(merge(0, "embed", HIDDEN, energy_pairs(0.6, 0.1))),
        "embed pool": plan(pool(0, "embed", pooling(0.5))),
        "pre": plan(*every_layer(merge, "pre", HIDDEN, bipartite(0.8)), over="kept"),
        "post": plan(*every_layer(merge, "post", HIDDEN, bipartite(theta=0.3)), **last),
        "post pool": plan(pool(0, "post", pooling(stride=4)), pool(1, "post", pooling(0.6))),
        "everywhere": plan(
            pool(0, "embed", pooling(0.9)),
            merge(0, "pre", HIDDEN, bipartite(0.9)),
            merge(0, "mid", KEYS, bipartite(0.9)),
            merge(0, "post", HIDDEN, energy_pairs(0.9, 0.2)),
            merge(1, "pre", HIDDEN, bipartite(theta=0.5)),
            merge(1, "mid", HIDDEN, bipartite(0.9)),
            pool(2, "mid", pooling(0.9)),
            pool(2, "post", pooling(0.8)),
            **nothing,
        ),
        # Several steps in one mid.
        "merge, drop": plan(
            *every_layer(merge, "mid", KEYS, bipartite(0.8)), *every_layer(drop, "mid", 0.8)
        ),
        "drop, merge": plan(
            *every_layer(drop, "mid", 0.8)[::2],
            *every_layer(merge, "mid", HIDDEN, bipartite(0.7))[::2],
            **last,
        ),
        "keys, states, pool, drop": plan(
            merge(1, "mid", KEYS, bipartite(0.8)),
            merge(1, "mid", HIDDEN, energy_pairs(0.8, 0.1)),
            pool(1, "mid", pooling(0.8)),
            drop(1, "mid", 0.7),
            drop(2, "mid", 0.8),
        ),
        "norms after merging": plan(
            merge(0, "mid", KEYS, bipartite(0.7)),
            _by(0, rm.score("attn_col", norm="unprotected"), "threshold", theta=0.7),
            pool(1, "mid", pooling(0.8)),
            _by(1, rm.score("attn_col", norm="alive"), "threshold_n", eta=0.5),
            merge(2, "mid", HIDDEN, bipartite(0.8)),
            _by(2, rm.score("attn_cls", value_norm=True), "quantile", q=0.3),
        ),
        "entropies after merging": plan(
            merge(0, "mid", KEYS, bipartite(0.7)),
            drop(0, "mid", 0.8, rm.entropy("row_entropy")),
            pool(1, "mid", pooling(stride=2)),
            drop(1, "mid", 0.8, rm.entropy("col_entropy", heads="max", sign=-1)),
        ),
        # Scores of earlier layers go on with their rows.
        "cumulative": plan(
            *every_layer(merge, "mid", KEYS, bipartite(0.8))[:2],
            drop(2, "mid", 0.6, rm.score("attn_cum", decay=0.6)),
            drop(2, "post", 0.8, rm.score("attn_cum", decay=0.6)),
        ),
        "previous": plan(
            *(merge(i, "mid", HIDDEN, bipartite(0.8)) for i in range(2)),
            *(drop(i, "mid", 0.8, previous) for i in later),
        ),
        "previous at pre": plan(
            pool(0, "post", pooling(0.7)), *(drop(i, "pre", 0.8, previous) for i in later)
        ),
        "random after pooling": plan(
            pool(0, "embed", pooling(stride=2)), drop(1, "pre", 0.7, rm.score("random", seed=4))
        ),
        # The token and the segment of a group are those of its first row.
        "table after pooling": plan(
            pool(0, "embed", pooling(stride=3)),
            drop(0, "pre", 0.7, rm.score("table", table=table)),
            merge(1, "post", HIDDEN, bipartite(0.6)),
            drop(1, "post", 0.7, rm.score("table", table=table)),
        ),
        "segments vote": plan(
            merge(0, "mid", KEYS, bipartite(0.7)),
            drop(1, "mid", 0.7, rm.score("attn_col", query="segment", segment=1)),
        ),
        # Limits and protection.
        "limits": plan(
            merge(0, "mid", KEYS, bipartite(0.3, min_tokens=12)),
            merge(1, "mid", HIDDEN, energy_pairs(1.0, 0.2, max_tokens=20)),
            pool(1, "post", pooling(stride=2, max_tokens=7)),
            merge(2, "mid", KEYS, bipartite(theta=2.0, max_tokens=6)),
            pool(2, "post", pooling(0.2, min_tokens=5)),
            skip_below=9,
        ),
        # A stride does not know a least number.
        "stride below the least": plan(
            *every_layer(pool, "mid", pooling(stride=2, min_tokens=12))[:2],
            pool(1, "post", pooling(stride=2, min_tokens=20)),
        ),
        "protected": plan(
            merge(0, "mid", KEYS, bipartite(0.5)),
            pool(1, "pre", pooling(0.7)),
            merge(1, "mid", KEYS, energy_pairs(0.7, 0.1)),
            drop(1, "mid", 0.8),
            protect={"last": True, "token_ids": [7, 8, 9, 10], "segment": 0},
            skip_below=4,
        ),
        "sizes do not count": plan(
            *every_layer(merge, "mid", KEYS, bipartite(0.7)), log_size=False, over="kept"
        ),
    }


def _by(layer: int, score: dict[str, Any], kind: str, **select: Any) -> Step:
    return _step(layer, "mid", score, "drop", {"kind": kind} | LIMITS | select)
