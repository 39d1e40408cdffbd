"""Plans that merge or pool, in the form that the engine takes."""

from __future__ import annotations

from typing import Any

import random_model as rm

Step = dict[str, Any]

HIDDEN: dict[str, Any] = {"kind": "similarity", "of": "hidden"}
KEYS: dict[str, Any] = {"kind": "similarity", "of": "keys"}
UNIFORM: dict[str, Any] = {"kind": "uniform"}
COLUMN = rm.score("attn_col")
LIMITS = {"min_tokens": 1, "max_tokens": 0}


def bipartite(ratio: float | None = None, theta: float | None = None, **options: Any) -> Step:
    share = {"ratio": ratio, "of": "n", "round": "ceil", "theta": theta}
    return {"kind": "bipartite"} | LIMITS | share | options


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
    for step in steps:
        if step["score"] not in scores:
            scores.append(step["score"])
        numbered.append(step | {"score": scores.index(step["score"])})
    output = {"kind": "mean", "over": over}
    made = rm.plan({}, numbered, **({"scores": scores, "output": output} | changes))
    return made | {"log_size": log_size}


def _step(layer: int, site: str, score: dict[str, Any], action: str, select: Step) -> Step:
    return {"layer": layer, "site": site, "score": score, "action": action, "select": select}
