"""Rules that span several fields of a policy, and its fit to a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checks import child, fail, names, show
from .choices import Score, Select
from .schema import Limits, Output, Policy, Protect, Step
from .tensors import check_tensors, check_widths

SCALED = {"threshold": "theta", "threshold_n": "eta", "threshold_rel": "t"}
"""Selectors whose numbers a profile's `theta_scale` multiplies, with the field's name."""

_GROUPED = {
    "merge": ("similarity", ("bipartite", "energy_pairs", "all_pairs")),
    "pool": ("uniform", ("pool",)),
}
"""Actions that group tokens, each with the kind of score and the selectors that only it has."""


@dataclass(frozen=True)
class ModelInfo:
    """What a policy must know of the model it runs in.

    Attributes:
        layers: number of encoder layers.
        vocab_size: rows of the word embedding.
        max_positions: longest sequence in tokens.
        output: what the model delivers: "cls" (sequence classification, or pooling of the first
            row), "mean" (any other pooling), "tokens_restored" (token classification), "span"
            (question answering), or None (hidden states only: any policy output fits).
        pooling: sentence-transformers pooling modes; several are concatenated.
        hidden: numbers of a token's state; None leaves the widths of gates to the engine.
    """

    layers: int
    vocab_size: int
    max_positions: int
    output: str | None = None
    pooling: tuple[str, ...] = ()
    hidden: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, span: bool = False) -> ModelInfo:
        """Description of an encoder configuration.

        Args:
            config: keys `layers`, `vocab_size`, `max_positions`, `hidden`, `head` ("none", "first"
                or "token") and `pooling` (list of modes).
            span: the token head gives start and end logits (question answering).
        """
        pooling = tuple(config.get("pooling", ()))
        head = config.get("head", "none")
        output: str | None = None
        if head == "token":
            output = "span" if span else "tokens_restored"
        elif head == "first" or pooling == ("cls",):
            output = "cls"
        elif pooling:
            output = "mean"
        sizes = (config["layers"], config["vocab_size"], config["max_positions"])
        return cls(*sizes, output=output, pooling=pooling, hidden=config["hidden"])


def effective_bounds(
    select: Select, limits: Limits, index: int, dead_first: bool
) -> tuple[int, int]:
    """Lowest and highest number of tokens a step leaves at its `index`-th layer (0: no maximum)."""
    default = 0 if dead_first else 1
    least = default if limits.min_tokens is None else limits.min_tokens
    if "min_tokens" in select.values:
        least = max(least, select.values["min_tokens"][index])
    most = [m for m in (limits.max_tokens,) if m is not None]
    if "max_tokens" in select.values:
        most.append(select.values["max_tokens"][index])
    return least, min(most, default=0)


def check_policy(policy: Policy) -> None:
    """Checks everything that does not need the model.

    Raises:
        PolicyError: naming the JSON path, what was found and what is allowed.
    """
    if policy.dead_first and policy.protect.first:
        fail("$.dead_first", '"passive" with protect.first true', "only one of the two")
    for i, step in enumerate(policy.steps):
        path = f"$.steps[{i}]"
        if step.score not in policy.scores:
            allowed = f"a score of the policy: {names(policy.scores)}"
            fail(f"{path}.score", f'"{step.score}"', allowed)
        _check_score_use(policy.scores[step.score], step, path, policy.protect)
        _check_gate_use(policy, step, path)
        _check_grouping(policy, i)
        if step.select.kind == "predicted_ratio":
            _check_prediction(step, path, policy.protect)
    _check_actions(policy)
    _check_limits(policy)
    if policy.output is not None:
        _check_output(policy, policy.output)
    check_tensors(policy)


def _check_prediction(step: Step, path: str, protect: Protect) -> None:
    if step.site == "mid":
        found = '"mid" with select kind "predicted_ratio"'
        fail(f"{path}.site", found, '"embed", "pre" or "post": it reads a finished state')
    if not protect.first:
        found = f"false, with {path}.select reading the state of the first token"
        fail("$.protect.first", found, "true")


def _check_gate_use(policy: Policy, step: Step, path: str) -> None:
    score = policy.scores[step.score]
    if step.select.kind == "gate" and (score.kind != "gate" or score.softmax):
        found = f'"gate" on {score.kind} "{score.id}"' + (" with softmax" if score.softmax else "")
        fail(f"{path}.select.kind", found, "a score of kind gate, without softmax")
    if score.kind != "gate":
        return
    if step.site == "mid":
        found = f'"mid" for gate "{score.id}"'
        fail(f"{path}.site", found, '"embed", "pre" or "post": a gate reads finished states')
    for other in policy.steps:
        # Its tensors are numbered by layer, which is not one state when sites are mixed.
        if other.score == step.score and other.site != step.site:
            found = f'"{step.site}" for gate "{score.id}", elsewhere read at "{other.site}"'
            fail(f"{path}.site", found, "one site for all steps that read a gate")


def _check_score_use(score: Score, step: Step, path: str, protect: Protect) -> None:
    if not score.reads_attention:
        return
    at = f"{path}.site"
    used = f'"{step.site}" at layer {step.layers[0]} for {score.kind} "{score.id}"'
    if score.kind == "similarity":
        if step.site not in ("mid", "post"):
            fail(at, f"{used} weighed by attention", '"mid" or "post"')
        return
    if step.site == "embed" or (step.site == "pre" and step.layers[0] == 0):
        fail(at, used, "a site after the first attention")
    source = f"{child('$.scores', score.id)}.from"
    if step.site == "pre" and score.kind == "attn_cum":
        fail(at, used, '"mid" or "post": it includes the attention of the layer of the step')
    if step.site == "pre" and score.source != "previous":
        fail(source, f'"this", used by {path} at site "pre"', '"previous"')
    if step.site == "post" and score.source != "this":
        fail(source, f'"previous", used by {path} at site "post"', '"this"')
    if step.site == "mid" and score.source == "previous" and step.layers[0] == 0:
        fail(f"{path}.layers[0]", '0 with a score from "previous"', "a layer >= 1")
    if score.value_norm and (step.site != "mid" or score.source != "this"):
        fail(at, f'{used} with value_norm and from "{score.source}"', '"mid" with from "this"')
    if score.reads_first_row and not protect.first:
        found = f'false, with {score.kind} "{score.id}" reading the row of the first token'
        fail("$.protect.first", found, "true")


def _check_grouping(policy: Policy, index: int) -> None:
    step, path = policy.steps[index], f"$.steps[{index}]"
    score, select = policy.scores[step.score], step.select
    for action, (kind, selectors) in _GROUPED.items():
        has = (step.action == action, score.kind == kind, select.kind in selectors)
        if any(has) and not all(has):
            found = f'"{step.action}" with select kind "{select.kind}" on {score.kind} "{score.id}"'
            allowed = f'"{action}" exactly with select kind {names(selectors)} on a score of {kind}'
            fail(f"{path}.action.kind", found, allowed)
    if score.attention and select.kind == "energy_pairs":
        found = f'"{select.kind}" on similarity "{score.id}" weighed by attention'
        fail(f"{path}.select.kind", found, '"bipartite" or "all_pairs"')
    if score.kind != "similarity" or score.of != "keys":
        return
    if step.site != "mid":
        found = f'"{step.site}" for similarity "{score.id}" of keys'
        fail(f"{path}.site", found, '"mid"; elsewhere "hidden" is compared')
    for i, other in enumerate(policy.steps[:index]):
        shared = sorted({*step.layers} & {*other.layers})
        if other.site == "mid" and shared:
            found = f'similarity "{score.id}" of keys after $.steps[{i}] at layer {shared[0]}'
            fail(
                f"{path}.score", found, 'keys in the first step at "mid" of a layer, else "hidden"'
            )


def _check_actions(policy: Policy) -> None:
    actions = {step.action for step in policy.steps}
    groups = [i for i, step in enumerate(policy.steps) if step.groups]
    for i, step in enumerate(policy.steps):
        if step.action != "package" and not step.groups:
            continue
        path, allowed = f"$.steps[{i}].action", '"drop" or "restore"'
        if policy.dead_first:
            fail(f"{path}.kind", f'"{step.action}" with dead_first', allowed)
        if "restore" in actions:
            fail(f"{path}.kind", f'"{step.action}" beside a step with "restore"', allowed)
        if step.groups and "package" in actions:
            found = f'"{step.action}" beside a step with "package"'
            fail(f"{path}.kind", found, '"drop" or "package"')
        if step.groups and step.log_size != policy.steps[groups[0]].log_size:
            found = str(step.log_size).lower()
            fail(f"{path}.log_size", found, f"the same as in $.steps[{groups[0]}]")


def _check_limits(policy: Policy) -> None:
    for name in (None, *policy.profiles):
        where = "$" if name is None else child("$.profiles", name)
        selects, limits, scale = policy.resolve(name)
        if limits.min_tokens == 0 and not policy.dead_first:
            allowed = 'an integer >= 1 unless dead_first is "passive"'
            fail(f"{where}.limits.min_tokens", "0", allowed)
        if scale != 1.0 and not any(select.kind in SCALED for select in selects):
            allowed = f"this field only beside a step with select kind {names(SCALED)}"
            fail(f"{where}.theta_scale", show(scale), allowed)
        for i, (select, step) in enumerate(zip(selects, policy.steps, strict=True)):
            for j, layer in enumerate(step.layers):
                least, most = effective_bounds(select, limits, j, policy.dead_first)
                if most and least > most:
                    found = f"min_tokens {least} above max_tokens {most} at layer {layer}"
                    fail(f"{where}.steps[{i}]", found, "min_tokens <= max_tokens, limits included")


def _check_output(policy: Policy, output: Output) -> None:
    path = "$.output.kind" if output.explicit else "$.output"
    if output.kind == "cls" and policy.steps and not (policy.protect.first or policy.dead_first):
        found = '"cls" while the first token may be dropped'
        fail(path, found, '"cls" only with protect.first true, or dead_first "passive"')
    restored = output.kind in ("tokens_restored", "span") or output.over == "restored"
    for i, step in enumerate(policy.steps):
        if restored and step.action != "restore":
            needs = f'"{output.kind}"' if output.over != "restored" else '"mean" over "restored"'
            found = f'"{step.action}" with output {needs}'
            fail(f"$.steps[{i}].action.kind", found, '"restore" in every step')


def bind_policy(policy: Policy, model: ModelInfo) -> Policy:
    """Checks a policy against a model and settles its output.

    Returns:
        The policy; where it leaves the output open, with the one the model delivers (None for a
        model that has hidden states only). The policy hash does not change.

    Raises:
        PolicyError: another layer count, an output the model does not deliver, token ids or
            tables outside its vocabulary or positions, gates for another hidden size, or a first
            (or last) token that the model reads and the policy may drop.
    """
    if policy.layers != model.layers:
        found, allowed = str(policy.layers), f"{model.layers}, the layer count of the model"
        fail("$.layers", found, allowed)
    for i, token in enumerate(policy.protect.token_ids):
        if token >= model.vocab_size:
            allowed = f"ids below {model.vocab_size}, the vocabulary size of the model"
            fail(f"$.protect.token_ids[{i}]", str(token), allowed)
    if model.hidden is not None:
        check_widths(policy, model.hidden)
    for name, score in policy.scores.items():
        if score.kind != "table":
            continue
        rows = policy.tensors[str(score.tensor)].shape[0]
        path = f"{child('$.scores', name)}.tensor"
        found = f'"{score.tensor}" with {rows} rows'
        if score.index == "token" and rows != model.vocab_size:
            fail(path, found, f"{model.vocab_size} rows, the vocabulary size of the model")
        if score.index == "position" and rows < model.max_positions:
            fail(path, found, f"at least {model.max_positions} rows, the positions of the model")
    bound = _bind_output(policy, model)
    if policy.steps:
        _check_rows_read(policy, model)
    return bound


def _bind_output(policy: Policy, model: ModelInfo) -> Policy:
    if model.output is None:
        return policy
    if policy.output is None or not policy.output.explicit:
        sized = model.output == "mean" and any(step.groups for step in policy.steps)
        derived = Output(model.output, "size" if sized else "kept", explicit=False)
        _check_output(policy, derived)
        return dataclasses.replace(policy, output=derived)
    # Both mean one row for every input token; they differ only in how the task reads the logits.
    per_token = {"tokens_restored", "span"}
    if policy.output.kind != model.output and not per_token >= {policy.output.kind, model.output}:
        found = f'"{policy.output.kind}"'
        fail("$.output.kind", found, f'"{model.output}", which the model delivers')
    return policy


def _check_rows_read(policy: Policy, model: ModelInfo) -> None:
    keeps_first = policy.protect.first or policy.dead_first
    if "cls" in model.pooling and not keeps_first:
        found = 'false, while the model pools with "cls"'
        fail("$.protect.first", found, 'true (or dead_first "passive")')
    if "lasttoken" in model.pooling and not policy.protect.last:
        found = 'false, while the model pools with "lasttoken"'
        fail("$.protect.last", found, "true")
