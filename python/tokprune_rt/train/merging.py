"""A Hugging Face encoder whose rows are merged, pooled and dropped as in the runtime.

Rows that leave are gone from the padded batch, so training costs less, too. What is decided has no
gradient; gradients pass through the weighted means of the rows that become one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tokprune_rt.policy import Policy, compile_plan
from tokprune_rt.train.grouping import alone, merged, pooled
from tokprune_rt.train.hard import PolicyChooser, protected_tokens
from tokprune_rt.train.leaving import Leaving
from tokprune_rt.train.masked import MaskedEncoder, Pass, attention_context, exactly
from tokprune_rt.train.networks import gate_score, predicted_ratio
from tokprune_rt.train.scores import ATTENTION, ENTROPY, Spec, normalise, statistic
from tokprune_rt.train.select import select

_SCORES = ("similarity", "uniform", "gate", *ATTENTION, *ENTROPY)
_ACTIONS = ("merge", "pool", "drop")
_OUTPUTS = ("kept", "size")
# What a similarity may be weighed by, and what keeps its logarithm finite.
_RECEIVED = {"kind": "attn_col", "heads": "mean", "diagonal": True, "query": "alive"}
_LEAST = 1e-6


@dataclass(kw_only=True)
class Rows(Pass):
    """A pass in which S shrinks: `alive`, `segments` and `input_ids` are those of the rows that are
    left, `real` stays that of the tokens. The living rows of a text come first.

    Attributes:
        owner: int64 [B, tokens], the row that stands for each token; -1 for dropped ones.
        place: int64 [B, S], original positions.
        size: float32 [B, S], tokens that a row stands for.
        protected: bool [B, S], rows that stay.
        keys: float32 [B, S, d/H], heads' mean of the latest keys, where a step compares them.
        attention: for each score of the plan that reads attention, its numbers [B, S]: of the
            latest layer, and of the one before it.
    """

    owner: Tensor
    place: Tensor
    size: Tensor
    protected: Tensor
    keys: Tensor | None = None
    attention: list[dict[int, Tensor]] = field(default_factory=lambda: [{}, {}])


class Reducer:
    """The steps of ``policy`` under ``profile`` (None: the policy's own numbers).

    Raises ValueError for what exists only in the runtime.
    """

    def __init__(self, policy: Policy, profile: str | None = None) -> None:
        self._plan = compile_plan(policy, profile) or {
            "scores": [],
            "steps": [],
            "log_size": False,
            "dead_first": False,
            "output": {"kind": "none", "over": "kept"},
        }
        for score in self._plan["scores"]:
            if score["kind"] not in _SCORES:
                _refuse(f"score {score['kind']!r}", _SCORES)
        for step in self._plan["steps"]:
            if step["action"] not in _ACTIONS:
                _refuse(f"action {step['action']!r}", _ACTIONS)
        if self._plan["dead_first"]:
            raise ValueError("dead_first 'passive' is not available where rows are merged")
        self.over: str = self._plan["output"]["over"]
        if self.over not in _OUTPUTS:
            _refuse(f"a mean over {self.over!r}", _OUTPUTS)

    @property
    def log_size(self) -> bool:
        """Whether a key's size counts in attention."""
        return bool(self._plan["log_size"])

    def begin(self, run: Rows) -> None:
        """Note who never leaves."""
        if self._plan["steps"]:
            run.protected = protected_tokens(self._plan["protect"], run)

    def compares_keys(self, layer: int) -> bool:
        """Whether a step reads the keys of this layer."""
        return any(
            self._plan["scores"][step["score"]].get("of") == "keys"
            for step in self._plan["steps"]
            if step["layer"] == layer
        )

    def reads_attention(self, layer: int) -> bool:
        """Whether a step reads the probabilities of this layer."""
        return any(self._watched(index, layer) for index in range(len(self._plan["scores"])))

    def _watched(self, score: int, layer: int) -> bool:
        spec = self._plan["scores"][score]
        if spec["kind"] not in (*ATTENTION, *ENTROPY) and not _weighed(spec):
            return False
        layers = [step["layer"] for step in self._plan["steps"] if step["score"] == score]
        if spec["kind"] == "attn_cum":
            return layer <= max(layers)
        return layer in layers or layer + 1 in layers

    def watch(self, run: Rows, layer: int, probs: Tensor, values: Tensor) -> None:
        """Take the statistics of a layer's attention, [B, H, S, S] and [B, H, S, d/H]."""
        before = run.attention[0]
        found: dict[int, Tensor] = {}
        for index, spec in enumerate(self._plan["scores"]):
            if self._watched(index, layer):
                found[index] = statistic(_RECEIVED if _weighed(spec) else spec, run, probs, values)
                if spec["kind"] == "attn_cum" and index in before:
                    found[index] = spec["decay"] * before[index] + found[index]
        run.attention = [found, before]

    def reduce(self, run: Rows, layer: int, site: str, hidden: Tensor) -> Tensor:
        """Run the steps of one place on ``hidden`` [B, S, d]; fewer rows come back."""
        for step in self._plan["steps"]:
            if (step["layer"], step["site"]) == (layer, site):
                with torch.no_grad():
                    leader = self._leaders(run, step, hidden)
                hidden = join(run, hidden, leader)
        return hidden

    def _leaders(self, run: Rows, step: Spec, hidden: Tensor) -> Tensor:
        spec, rule = self._plan["scores"][step["score"]], step["select"]
        if spec["kind"] == "similarity":
            rows = run.keys if spec["of"] == "keys" else hidden
            assert rows is not None
            bias = None
            if _weighed(spec):
                received = run.attention[0][step["score"]]
                bias = -0.5 * spec["attention"] * (received + _LEAST).log()
            found = merged(rule, rows, run.alive, run.protected, run.lengths, bias)
        elif spec["kind"] == "uniform":
            found = pooled(rule, run.alive, run.protected, run.lengths)
        else:
            if spec["kind"] == "gate":
                scores = gate_score(spec, step["layer"], hidden, run.alive)
            else:
                # Before a layer, the latest attention is the layer's before.
                previous = spec["from"] == "previous" and step["site"] != "pre"
                column = run.attention[int(previous)][step["score"]]
                scores = normalise(spec, run, column, run.protected)
            if rule["kind"] == "predicted_ratio":
                rule = rule | {"ratio": predicted_ratio(rule, hidden)}
            stays = select(rule, scores, run.alive, run.protected, run.lengths)
            found = alone(run.alive).masked_fill(~stays, -1)
        short = run.lengths < self._plan["skip_below"]
        return torch.where(short[:, None], alone(run.alive), found)


def _weighed(spec: Spec) -> bool:
    """Whether a similarity falls with the attention that both tokens receive."""
    return spec["kind"] == "similarity" and spec["attention"] != 0.0


def _refuse(what: str, known: tuple[str, ...]) -> None:
    raise ValueError(
        f"{what} is not available where rows are merged in training; available: {', '.join(known)}"
    )


def join(run: Rows, hidden: Tensor, leader: Tensor) -> Tensor:
    """Make one row of each group, and let the rows without one go.

    Args:
        run: its arrays follow.
        hidden: [B, S, d].
        leader: int64 [B, S], see `grouping`.
    """
    places = torch.arange(hidden.shape[1], device=hidden.device)
    leads = leader == places
    if torch.equal(leads, run.alive):
        return hidden
    count = leads.sum(dim=1)
    width = int(count.max())
    # Leaders to the left; behind them whatever, which is not alive.
    order = torch.sort(~leads, dim=1, stable=True).indices[:, :width]
    member = leader >= 0
    groups = bool((member & ~leads).any())
    # By row: its group's place, and that in the flattened result.
    group = (leads.cumsum(dim=1) - 1).gather(1, leader.clamp(min=0)).clamp(min=0)
    target = width * torch.arange(len(hidden), device=hidden.device)[:, None] + group
    heir = torch.where(member, group, -1).gather(1, run.owner.clamp(min=0))
    run.owner = torch.where(run.owner >= 0, heir, -1)
    size = run.size * member
    total = torch.zeros(len(hidden) * width, device=hidden.device)
    total.scatter_add_(0, target.flatten(), size.flatten())
    share = size / total[target].clamp(min=1.0)

    def mean(rows: Tensor) -> Tensor:
        if not groups:
            index = order[..., None].expand(-1, -1, rows.shape[-1])
            return rows.gather(1, index)
        flat = (rows * share[..., None].to(rows.dtype)).flatten(0, 1)
        index = target.flatten()[:, None].expand(flat.shape)
        result = flat.new_zeros(len(rows) * width, rows.shape[-1]).scatter_add(0, index, flat)
        return result.unflatten(0, (len(rows), width))

    run.attention = [
        {index: mean(column[..., None])[..., 0] for index, column in columns.items()}
        for columns in run.attention
    ]
    for name in ("place", "protected", "segments", "input_ids"):
        setattr(run, name, getattr(run, name).gather(1, order))
    run.size = total.view(len(hidden), width)
    run.alive = torch.arange(width, device=hidden.device) < count[:, None]
    return mean(hidden)


def means(run: Rows, states: Tensor) -> Tensor:
    """For each row of ``run``, the mean of ``states`` [B, tokens, d] over the tokens it stands for;
    [B, S, d], 0 for rows that are not alive."""
    batch, width = run.alive.shape
    member = run.owner >= 0
    target = width * torch.arange(batch, device=states.device)[:, None] + run.owner.clamp(min=0)
    share = (member / run.size.flatten()[target].clamp(min=1.0)).to(states.dtype)
    flat = (states * share[..., None]).flatten(0, 1)
    index = target.flatten()[:, None].expand(flat.shape)
    result = flat.new_zeros(batch * width, states.shape[-1]).scatter_add(0, index, flat)
    return result.view(batch, width, -1)


class MergingEncoder(MaskedEncoder):
    """The encoder of ``model``, of any supported architecture, with the steps of a `Reducer`.

    Raises ValueError for an architecture that the runtime does not have.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._reducer: Reducer | None = None
        # What ends a layer's attention, residual and LayerNorm included: where `mid` steps run.
        before, _, norm = self._stems["attention_norm"].partition("{i}.")
        inside = norm.removesuffix(".LayerNorm").removesuffix(".output")
        self._ends = [
            model.base_model.get_submodule(f"{before}{i}.{inside}") for i in range(len(self.layers))
        ]

    @contextmanager
    def choosing(self, chooser: Any) -> Iterator[None]:
        """Within it, calls through `run` execute the `Reducer` ``chooser`` (None: dense)."""
        self._reducer = chooser
        try:
            with super().choosing(None):
                yield
        finally:
            self._reducer = None

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Any, Rows]:
        """See `MaskedEncoder.run`; the rows of the output are those that are left."""
        output, run = super().run(inputs)
        return output, cast(Rows, run)

    def _begin(
        self, inputs: Mapping[str, Tensor], ids: Tensor, real: Tensor, segments: Tensor
    ) -> Pass:
        place = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        size, nobody = real.to(torch.float32), torch.zeros_like(real)
        run = Rows(
            inputs,
            ids,
            real,
            segments,
            real.clone(),
            owner=torch.where(real, place, -1),
            place=place,
            size=size,
            protected=nobody,
        )
        if self._reducer is not None:
            self._reducer.begin(run)
        return run

    def _hooks(self, index: int) -> list[RemovableHandle]:
        return [
            *super()._hooks(index),
            self._ends[index].register_forward_hook(self._middle(index)),
        ]

    def _reduce(self, index: int, site: str, hidden: Tensor) -> Tensor:
        if self._reducer is None:
            return hidden
        with exactly(hidden):
            return self._reducer.reduce(cast(Rows, self._current()), index, site, hidden)

    def _before(self, index: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if index == 0:
                hidden = self._reduce(index, "embed", hidden)
            hidden = self._reduce(index, "pre", hidden)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return hook

    def _middle(self, index: int) -> Callable[..., Any]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, Tensor):
                return self._reduce(index, "mid", output)
            return (self._reduce(index, "mid", output[0]), *output[1:])

        return hook

    def _after(self, index: int) -> Callable[..., Any]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            hidden = output if isinstance(output, Tensor) else output[0]
            hidden = self._reduce(index, "post", hidden)
            run = self._current()
            run.kept.append(run.alive)
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return hook

    def _context(
        self,
        run: Pass,
        index: int,
        hidden: Tensor,
        heads: tuple[Tensor, Tensor, Tensor],
        position_bias: Tensor | None,
    ) -> Tensor:
        rows, reducer = cast(Rows, run), self._reducer
        query, key, value = heads
        if reducer is not None and reducer.compares_keys(index):
            rows.keys = key.detach().float().mean(dim=1)
        bias = self._bias(rows, position_bias)
        if reducer is not None and reducer.reads_attention(index):
            # Once more for the statistics, which have no gradient.
            with torch.no_grad(), exactly(bias):
                logits = query.float() @ key.float().transpose(2, 3) / math.sqrt(query.shape[-1])
                reducer.watch(rows, index, torch.softmax(logits + bias, dim=-1), value.float())
        return attention_context(query, key, value, rows.alive, bias)

    def _bias(self, run: Rows, position_bias: Tensor | None) -> Tensor:
        """What is added to attention's logits, float32 [B, 1 or H, 1 or S, S]."""
        sized = self._reducer is not None and self._reducer.log_size
        weight = run.size.clamp(min=1.0).log() if sized else torch.zeros_like(run.size)
        bias = weight.masked_fill(~run.alive, -math.inf)[:, None, None, :]
        if position_bias is None:
            return bias
        if self._reducer is None:
            return position_bias + bias
        # Of the positions that rows have kept; the same table for every text.
        table = position_bias[0]
        near = table[:, run.place[:, :, None], run.place[:, None, :]]
        return near.transpose(0, 1) + bias


def executing(
    model: PreTrainedModel, policy: Policy, leaving: Leaving
) -> tuple[MaskedEncoder, Any]:
    """An encoder of ``model`` and its chooser for ``policy``: one that computes fewer rows, or
    masks where the head reads the rows of tokens that have left (``leaving``).

    Raises ValueError for scores and actions that exist only in the runtime.
    """
    if not leaving.restores:
        try:
            return MergingEncoder(model), Reducer(policy)
        except ValueError:  # tables; masks may know better, or what to say
            pass
    return MaskedEncoder(model), PolicyChooser(policy)
