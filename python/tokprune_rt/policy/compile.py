"""Translation of a validated policy and a profile into the plan that the engine executes."""

from __future__ import annotations

import math
from typing import Any

from .choices import ENTROPIES, Score, Select
from .rules import SCALED, effective_bounds
from .schema import OFF, Limits, Policy, Step
from .tensors import perceptron

_SITES = ("embed", "pre", "mid", "post")

_DEFAULTS: dict[str, dict[str, Any]] = {
    "ratio": {"of": "n", "round": "ceil"},
    "threshold_rel": {"of": "max"},
    "rank_bins": {"bin_rule": "int"},
    "predicted_ratio": {"activation": "gelu"},
    "bipartite": {"ratio": None, "of": "n", "round": "ceil", "theta": None},
    "all_pairs": {"ratio": None, "of": "n", "round": "ceil", "theta": None},
    "energy_pairs": {"of": "n", "round": "ceil", "alpha": 1.0},
    "pool": {"ratio": None, "of": "n", "round": "ceil", "stride": 0},
}
_OUTPUTS = {"tokens_restored": "tokens", "span": "tokens"}


def compile_plan(policy: Policy, profile: str | None = None) -> dict[str, Any] | None:
    """Compiles a policy for execution.

    Args:
        policy: a parsed policy. Bind it to its model first (`bind_policy`), so that an output it
            leaves open is known; otherwise the plan's output kind is "none".
        profile: name of a profile; None uses the plain numbers of the policy.

    Returns:
        The plan: one entry per (layer, step) in order of execution, every number resolved, only
        the scores in use. None when nothing is pruned: the profile "off", or no steps.

    Raises:
        ValueError: the policy has no such profile.
    """
    if profile == OFF:
        return None
    selects, limits, scale = policy.resolve(profile)
    if not policy.steps:
        return None
    used = [name for name in policy.scores if any(s.score == name for s in policy.steps)]
    steps: list[dict[str, Any]] = []
    for step, select in zip(policy.steps, selects, strict=True):
        for index, layer in enumerate(step.layers):
            entry = {"layer": layer, "site": step.site, "score": used.index(step.score)}
            entry["action"] = step.action
            entry["select"] = _select(policy, step, select, limits, scale, index)
            steps.append(entry)
    steps.sort(key=lambda entry: (entry["layer"], _SITES.index(entry["site"])))

    protect, output = policy.protect, policy.output
    return {
        "layers": policy.layers,
        "protect": {
            "first": protect.first,
            "last": protect.last,
            "token_ids": list(protect.token_ids),
            "segment": -1 if protect.segment is None else protect.segment,
        },
        "skip_below": limits.skip_below,
        "dead_first": policy.dead_first,
        "log_size": any(step.groups and step.log_size for step in policy.steps),
        "output": {
            "kind": "none" if output is None else _OUTPUTS.get(output.kind, output.kind),
            "over": "kept" if output is None else output.over,
        },
        "scores": [_score(policy, policy.scores[name]) for name in used],
        "steps": steps,
    }


def _score(policy: Policy, score: Score) -> dict[str, Any]:
    if score.kind in ENTROPIES:
        fields = {"heads": score.heads, "from": score.source, "sign": score.sign}
        return {"kind": score.kind, **fields}
    if score.kind == "gate":
        layers = {layer for step in policy.steps if step.score == score.id for layer in step.layers}
        return {
            "kind": score.kind,
            "activation": score.activation,
            "softmax": score.softmax,
            "layers": {i: perceptron(policy, str(score.tensor), i) for i in sorted(layers)},
        }
    if score.kind == "similarity":
        return {"kind": score.kind, "of": score.of, "attention": score.attention}
    if score.kind == "uniform":
        return {"kind": score.kind}
    return {
        "kind": score.kind,
        "heads": score.heads,
        "diagonal": score.diagonal,
        "query": score.query,
        "segment": -1 if score.segment is None else score.segment,
        "norm": score.norm,
        "n": 0.0 if score.n is None else score.n,
        "from": score.source,
        "decay": score.decay,
        "value_norm": score.value_norm,
        "table": None if score.tensor is None else policy.tensors[score.tensor],
        "index": score.index,
        "seed": score.seed,
    }


def _select(
    policy: Policy, step: Step, select: Select, limits: Limits, scale: float, index: int
) -> dict[str, Any]:
    least, most = effective_bounds(select, limits, index, policy.dead_first)
    result: dict[str, Any] = {"kind": select.kind, "min_tokens": least, "max_tokens": most}
    result |= _DEFAULTS.get(select.kind, {})
    for name, values in select.values.items():
        if name not in ("min_tokens", "max_tokens"):
            value = values[index]
            result[name] = list(value) if name in ("bits", "ratios") else value
    result.update(select.options)
    if select.kind in SCALED:
        result[SCALED[select.kind]] *= scale
    if select.kind == "gate":
        t = result.pop("t")
        result["threshold"] = math.log(t / (1 - t))
    if select.kind == "predicted_ratio":
        result |= perceptron(policy, result.pop("tensor"), step.layers[index])
    if select.kind == "threshold":
        result["theta"] = max(result.pop("floor", 0.0), result["theta"])
    return result
