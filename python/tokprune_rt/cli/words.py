"""A policy in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokprune_rt.policy import Limits, Policy, Protect, Score, Select

_SITES = {
    "embed": "after the embeddings",
    "pre": "before the layer",
    "mid": "inside the layer, after its attention weights",
    "post": "after the layer",
}
_ACTIONS = {
    "drop": "",
    "restore": "; the output has the last state of what left",
    "package": "; what leaves is merged into one row",
    "merge": "; what leaves is merged into the row it resembles most",
    "pool": "",
}
_OUTPUTS = {
    "cls": "the first token's row",
    "tokens_restored": "a row for every input token",
    "span": "start and end of a span",
}
_OVER = {
    "kept": "mean over the rows left",
    "size": "mean over the rows left, weighted by the tokens they stand for",
    "restored": "mean over the last state of every input token",
}


def policy_words(policy: Policy, profile: str | None = None) -> list[str]:
    """Sentences that say what a policy does under a profile.

    Raises ValueError for an unknown profile.
    """
    from tokprune_rt.policy import OFF

    if profile == OFF or not policy.steps:
        return ["every token stays"]
    selects, limits, scale = policy.resolve(profile)
    lines = []
    for step, select in zip(policy.steps, selects, strict=True):
        where = layer_names(step.layers)
        what = _select_words(select, scale) + _ACTIONS[step.action]
        site = _SITES[step.site]
        lines.append(f"{site}: {what}" if step.site == "embed" else f"{where}, {site}: {what}")
    if any(step.groups and step.log_size for step in policy.steps):
        lines.append("a row attracts attention for all tokens it stands for")
    used = {step.score for step in policy.steps}
    lines += [
        f"score {_score_words(score)}" for name, score in policy.scores.items() if name in used
    ]
    if policy.dead_first:
        lines.append("the first token may leave; its row then goes on without attention")
    lines += _protect_words(policy.protect)
    lines += _limit_words(limits)
    if policy.output is not None:
        kind = policy.output.kind
        lines.append(f"output: {_OVER[policy.output.over] if kind == 'mean' else _OUTPUTS[kind]}")
    return lines


def layer_names(layers: Sequence[int]) -> str:
    """``[1, 2, 3, 5]`` -> ``"layers 1-3, 5"``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(parts)}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _series(values: Sequence[Any], form: Any) -> str:
    """One value when they are all the same, else one for every layer."""
    shown = [form(value) for value in values]
    return str(shown[0]) if len(set(shown)) == 1 else " / ".join(shown)


def _select_words(select: Select, scale: float) -> str:
    values, options = select.values, select.options

    def scaled(value: float) -> str:
        return _number(value * scale)

    kind = select.kind
    if kind == "topk":
        words = f"{_series(values['k'], str)} tokens stay"
    elif kind == "ratio":
        words = f"{_share_words(select)} stay"
    elif kind in ("bipartite", "all_pairs", "energy_pairs", "pool"):
        words = _group_words(select)
    elif kind == "threshold":
        words = f"tokens with a score of at least {_series(values['theta'], scaled)} stay"
    elif kind == "gate":
        words = f"tokens with a probability of at least {_series(values['t'], _percent)} stay"
    elif kind == "threshold_n":
        words = (
            f"tokens with a score of at least {_series(values['eta'], scaled)} / number of tokens "
            "stay"
        )
    elif kind == "threshold_rel":
        reference = "mean" if options.get("of") == "mean" else "highest"
        words = (
            f"tokens with at least {_series(values['t'], scaled)} times the {reference} score stay"
        )
    elif kind == "predicted_ratio":
        choices = ", ".join(map(_percent, values["ratios"][0]))
        words = f"a share of the tokens still there stays that a network chooses: {choices}"
    elif kind == "quantile":
        words = f"the lowest {_series(values['q'], _percent)} of the unprotected tokens leave"
    elif kind == "top_p":
        words = (
            f"the best tokens that hold {_series(values['p'], _percent)} of the unprotected score "
            "stay"
        )
    else:
        shares = [f"{sum(row)} of {len(row)}" for row in values["bits"]]
        words = f"{_series(shares, str)} equal bins of the ranking stay"
    if "min_tokens" in values:
        words += f", at least {_series(values['min_tokens'], str)}"
    if "max_tokens" in values:
        words += f", at most {_series(values['max_tokens'], str)}"
    return words


def _share_words(select: Select) -> str:
    base = "input's tokens" if select.options.get("of") == "n0" else "tokens still there"
    return f"{_series(select.values['ratio'], _percent)} of the {base}"


def _group_words(select: Select) -> str:
    values = select.values
    if select.kind == "pool" and "stride" in values:
        return f"every {_series(values['stride'], str)} neighbours become one row"
    if "theta" in values:
        least = _series(values["theta"], _number)
        among = "of every other token, those" if select.kind == "bipartite" else "tokens"
        rest = "one of the rest" if select.kind == "bipartite" else "another"
        return f"{among} more similar than {least} to {rest} leave"
    if select.kind == "pool":
        which = "neighbours become one row"
    elif select.kind == "bipartite":
        which = "of every other token, those most similar to one of the rest leave"
    elif select.kind == "all_pairs":
        which = "the tokens most similar to another leave"
    else:
        similar = _series(values["margin"], _number)
        which = f"tokens that resemble most others (similar: from {similar} on) leave"
    return f"{which}, until {_share_words(select)} are left"


def _score_words(score: Score) -> str:
    from tokprune_rt.policy.choices import ENTROPIES

    name = f'"{score.id}": '
    if score.kind == "similarity":
        weighed = f", weighed by attention ({score.attention:g})" if score.attention else ""
        return f"{name}cosine of two tokens' {'keys' if score.of == 'keys' else 'states'}{weighed}"
    if score.kind == "uniform":
        return f"{name}none, all tokens alike"
    if score.kind == "table":
        return f"{name}a table by {'position' if score.index == 'position' else 'token id'}"
    if score.kind == "gate":
        shares = ", as a share of all tokens' (softmax)" if score.softmax else ""
        return f"{name}a learned gate on the token's state ({score.activation}){shares}"
    if score.kind == "random":
        return f"{name}random, seed {score.seed}"
    if score.kind == "attn_cls":
        weighted = ", weighted by the norm of its value" if score.value_norm else ""
        return f"{name}attention from the first token{weighted}{_from_words(score)}"
    if score.kind in ENTROPIES:
        what = "pays" if score.kind == "row_entropy" else "receives"
        lowest = ", lowest first" if score.sign < 0 else ""
        heads = f"{score.heads} over heads{lowest}"
        return f"{name}entropy of the attention a token {what} ({heads}){_from_words(score)}"
    voters = {
        "alive": "received",
        "first": "received from the first token",
        "segment": f"received from segment {score.segment}",
    }[score.query]
    notes = [f"{score.heads} over heads"]
    if score.kind == "attn_cum":
        decay = "" if score.decay == 1 else f" with decay {_number(score.decay)}"
        notes.append(f"summed over the layers{decay}")
    if not score.diagonal:
        notes.append("without a token's own")
    norms = {
        "alive": "per token still there",
        "const": f"per {_number(score.n or 0)}",
        "n0": "per input token",
        "unprotected": "relative to the mean of unprotected tokens",
    }
    if score.norm in norms:
        notes.append(norms[score.norm])
    return f"{name}attention {voters} ({', '.join(notes)}){_from_words(score)}"


def _from_words(score: Score) -> str:
    return " of the layer before" if score.source == "previous" else ""


def _protect_words(protect: Protect) -> list[str]:
    parts = []
    if protect.first:
        parts.append("the first token")
    if protect.last:
        parts.append("the last token")
    if protect.token_ids:
        parts.append(f"token ids {', '.join(map(str, protect.token_ids))}")
    if protect.segment is not None:
        parts.append(f"segment {protect.segment}")
    return [f"never leave: {', '.join(parts)}"] if parts else []


def _limit_words(limits: Limits) -> list[str]:
    lines = []
    if limits.min_tokens is not None and limits.min_tokens > 1:
        lines.append(f"at least {limits.min_tokens} tokens stay")
    if limits.max_tokens is not None:
        lines.append(f"at most {limits.max_tokens} tokens stay")
    if limits.skip_below > 1:
        lines.append(f"texts under {limits.skip_below} tokens are not pruned")
    return lines
