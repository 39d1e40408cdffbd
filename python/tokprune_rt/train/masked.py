"""A Hugging Face encoder whose tokens leave as they do in the runtime, by masks.

Outside attention no row meets another, so a token that has left is fully described by what it no
longer is: a key, and a voter in scores. Its row is still computed, which costs time and changes
nothing. Given the same decisions, the rows that stay are the runtime's. Attention's probabilities
have no dropout, whatever the configuration says: they are what tokens are chosen by, and at
hundreds of tokens drawing its noise would take a fifth of a step.

`MaskedEncoder` replaces a model's attention and calls a `Chooser` where the runtime's steps run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from tokprune_rt.loader.families import FAMILIES


@dataclass
class Pass:
    """One forward pass of a padded batch: what it was given and what has been decided.

    Attributes:
        inputs: what the model is called with.
        input_ids: int64 [B, S].
        real: bool [B, S], False for padding.
        segments: int64 [B, S], the text of a pair that a token belongs to.
        alive: bool [B, S], the keys and voters of the next attention.
        weight: float [B, S] or None: factors of the keys' probabilities before they are normalised,
            through which gradients reach decisions (1 where alive, 0 where not).
        passive: bool [B] or None: the first token left and its row goes on without context.
        kept: bool [B, S] for each layer that has run: who is left after it.
        scores: float [B, S] for each decision, in order.
        saved: rows [B, S, d] that `restored` tokens show in the final output.
        restored: bool [B, S].
        notes: what a chooser remembers between the layers of this pass.
        places: where a training step's sequences stand among the examples.
    """

    inputs: Mapping[str, Tensor]
    input_ids: Tensor
    real: Tensor
    segments: Tensor
    alive: Tensor
    weight: Tensor | None = None
    passive: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    saved: Tensor | None = None
    restored: Tensor | None = None
    notes: dict[Any, Any] = field(default_factory=dict)
    places: Sequence[int] = ()

    @property
    def lengths(self) -> Tensor:
        """int64 [B], tokens of each input."""
        return self.real.sum(dim=1)

    def restore(self, rows: Tensor, state: Tensor) -> None:
        """Show ``state`` [B, S, d] for the tokens ``rows`` (bool [B, S]) in the final output."""
        if self.saved is None or self.restored is None:
            self.saved, self.restored = state, torch.zeros_like(self.real)
        self.saved = torch.where(rows[..., None], state, self.saved)
        self.restored = self.restored | rows


class Chooser(Protocol):
    """Decides which tokens stay, where the runtime's steps of the same name run."""

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        """`pre` steps; ``hidden`` [B, S, d] enters the layer."""

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        """`mid` steps. probs [B, H, S, S], float32, 0 for keys that are not alive; values
        [B, H, S, d/H]; ``hidden`` entered the layer."""

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        """`post` steps; returns the layer's output, which a soft method may scale."""


class MaskedEncoder:
    """The encoder of ``model``, of any supported architecture and task.

    Raises ValueError for an architecture that the runtime does not have.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        family = FAMILIES.get(model.config.model_type)
        if family is None:
            raise ValueError(
                f"cannot prune a {model.config.model_type!r} model; supported: "
                f"{', '.join(sorted(FAMILIES))}"
            )
        self.model = model
        self._stems = family.layer
        base = model.base_model
        self.layers: list[nn.Module] = []
        self._attention: list[nn.Module] = []
        for index in range(model.config.num_hidden_layers):
            before, _, inside = family.layer["q"].partition("{i}.")
            layer = base.get_submodule(f"{before}{index}")
            self.layers.append(layer)
            self._attention.append(layer.get_submodule(inside.rpartition(".")[0]))
        self.heads = int(model.config.num_attention_heads)
        self._run: Pass | None = None
        self._chooser: Chooser | None = None

    @contextmanager
    def choosing(self, chooser: Chooser | None) -> Iterator[None]:
        """Within it, calls through `run` let ``chooser`` decide (None: dense)."""
        handles = []
        for index, attention in enumerate(self._attention):
            attention.forward = self._attend(index, attention)
            handles += self._hooks(index)
        self._chooser = chooser
        try:
            yield
        finally:
            self._chooser = None
            for handle in handles:
                handle.remove()
            for attention in self._attention:
                del attention.forward

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Any, Pass]:
        """One forward pass of the model on a padded batch; returns its output and the decisions.

        ``inputs`` are the model's, with ``attention_mask`` and optionally ``segment_ids`` [B, S],
        by default the token types.
        """
        given = dict(inputs)
        ids, real = given["input_ids"], given["attention_mask"].bool()
        types = given.get("token_type_ids")
        segments = given.pop("segment_ids", types if types is not None else torch.zeros_like(ids))
        self._run = run = self._begin(given, ids, real, segments)
        try:
            output = self.model(**given)
        finally:
            self._run = None
        return output, run

    def _begin(
        self, inputs: Mapping[str, Tensor], ids: Tensor, real: Tensor, segments: Tensor
    ) -> Pass:
        return Pass(inputs, ids, real, segments, real.clone())

    def _hooks(self, index: int) -> list[RemovableHandle]:
        layer = self.layers[index]
        return [
            layer.register_forward_pre_hook(self._before(index), with_kwargs=True),
            layer.register_forward_hook(self._after(index), prepend=True),
        ]

    def _before(self, index: int) -> Callable[..., Any]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run = self._current()
            if self._chooser is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                with exactly(hidden):
                    self._chooser.before_layer(run, index, hidden)

        return hook

    def _after(self, index: int) -> Callable[..., Any]:
        last = index == len(self.layers) - 1

        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            run = self._current()
            hidden = output if isinstance(output, Tensor) else output[0]
            if self._chooser is not None:
                with exactly(hidden):
                    hidden = self._chooser.after_layer(run, index, hidden)
            run.kept.append(run.alive)
            if last and run.saved is not None and run.restored is not None:
                hidden = torch.where(run.restored[..., None], run.saved, hidden)
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return hook

    def _current(self) -> Pass:
        if self._run is None:
            raise RuntimeError("the model is attached to a MaskedEncoder; call its run()")
        return self._run

    def _attend(self, index: int, attention: nn.Module) -> Callable[..., tuple[Tensor, None]]:
        """The attention of one layer, with keys masked by the pass."""
        parts = {name: stem.rpartition(".")[2] for name, stem in self._stems.items()}
        q, k, v = (cast(nn.Linear, attention.get_submodule(parts[name])) for name in "qkv")
        # In some families the output projection lies in the same module.
        inside = self._stems["o"].rpartition(".")[0] == self._stems["q"].rpartition(".")[0]
        project = attention.get_submodule(parts["o"]) if inside else nn.Identity()

        def forward(
            hidden_states: Tensor,
            attention_mask: Tensor | None = None,
            position_bias: Tensor | None = None,
            **_: Any,
        ) -> tuple[Tensor, None]:
            run = self._current()

            def split(rows: Tensor) -> Tensor:
                return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)

            heads = (split(q(hidden_states)), split(k(hidden_states)), split(v(hidden_states)))
            context = self._context(run, index, hidden_states, heads, position_bias)
            return project(context), None

        return forward

    def _context(
        self,
        run: Pass,
        index: int,
        hidden: Tensor,
        heads: tuple[Tensor, Tensor, Tensor],
        position_bias: Tensor | None,
    ) -> Tensor:
        """What attention gives each row, [B, S, d]; ``heads``: query, key, value [B, H, S, d/H]."""
        query, key, value = heads
        if self._chooser is None:
            return _dense_context(query, key, value, run.alive, position_bias)
        logits = (query @ key.transpose(2, 3)).float().div_(math.sqrt(query.shape[-1]))
        if position_bias is not None:
            logits += position_bias
        passive = run.passive
        probs = masked_softmax(logits, run.alive, run.weight)
        with exactly(probs):
            self._chooser.after_softmax(run, index, probs, value, hidden)
        context = probs.to(value.dtype) @ value
        context = context.transpose(1, 2).flatten(2)
        if passive is not None:
            # A first token that leaves in this very layer still gets this layer's context.
            context[:, 0] = context[:, 0].masked_fill(passive[:, None], 0.0)
        return context


def _dense_context(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor, position_bias: Tensor | None
) -> Tensor:
    """Attention whose probabilities nobody asks for, [B, S, d]."""
    bias = None if real.all() else torch.zeros_like(real, dtype=torch.float32)[:, None, None, :]
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + bias
    if bias is not None:
        bias = bias.masked_fill(~real[:, None, None, :], -math.inf)
    return attention_context(query, key, value, real, bias)


def attention_context(
    query: Tensor, key: Tensor, value: Tensor, alive: Tensor, bias: Tensor | None
) -> Tensor:
    """What the keys ``alive`` [B, S] give each row, [B, S, d]; heads are [B, H, S, d/H], ``bias``
    is added to the logits and is minus infinity for keys that are not alive."""
    if query.dtype == torch.bfloat16:  # the fused gradient is several times slower than this there
        logits = (query @ key.transpose(2, 3)).float().div_(math.sqrt(query.shape[-1]))
        if bias is not None:
            logits += bias
        context = masked_softmax(logits, alive, None).to(value.dtype) @ value
    else:  # probabilities are never written to memory
        mask = None if bias is None else bias.to(query.dtype)
        context = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context.transpose(1, 2).flatten(2)


def exactly(rows: Tensor) -> torch.autocast:
    """Decisions are not for bfloat16, whatever the products around them are."""
    return torch.autocast(rows.device.type, enabled=False)


def logits_of(output: Any, real: Tensor) -> Tensor:
    """What a loss reads of a model's output: logits [B, outputs]; of a token classification [T,
    classes], the tokens of all sequences without padding (``real`` [B, S] is False there); of
    question answering [B, S, 2], start and end, with padding far below everything."""
    if "start_logits" in output:
        logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
        # Not minus infinity, whose products with 0 are no numbers.
        return logits.float().masked_fill(~real[..., None], -1e4)
    found: Tensor = output.logits
    return found[real] if found.ndim == 3 else found


def rows_of(output: Any, lengths: Tensor) -> list[Tensor]:
    """A model's output by sequence, as the runtime gives it: logits [outputs] or [tokens,
    outputs]."""
    if "start_logits" in output:
        found = torch.stack([output.start_logits, output.end_logits], dim=-1)
    else:
        found = output.logits
    if found.ndim == 2:
        return list(found)
    return [row[:length] for row, length in zip(found, lengths.tolist(), strict=True)]


def masked_softmax(logits: Tensor, alive: Tensor, weight: Tensor | None) -> Tensor:
    """Softmax of [B, H, S, S] over the keys ``alive`` [B, S]; exactly 0 for the others.

    With ``weight`` [B, S] the exponentials are multiplied by it instead, so that a gradient reaches
    the weight of a token that is out as well. ``logits`` are used up.
    """
    found: Tensor = _MaskedSoftmax.apply(logits, alive, weight)
    return found


class _MaskedSoftmax(torch.autograd.Function):
    """In place where it can be: at hundreds of tokens, memory takes most of attention's time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, alive: Tensor, weight: Tensor | None) -> Tensor:
        dead = ~alive[:, None, None, :]
        if weight is None:
            probs = torch.softmax(logits.masked_fill_(dead, -math.inf), dim=-1)
            if not alive.any(dim=1).all():
                probs.masked_fill_(dead, 0.0)
            ctx.save_for_backward(probs, None)
            return probs
        # The largest logit among the living, so that they cannot all underflow; one that is out
        # may lie far above it, and only gives a gradient.
        top = logits.masked_fill(dead, -math.inf).amax(dim=-1, keepdim=True)
        parts = logits.sub_(top.clamp_(min=-1e30)).clamp_(max=4.0).exp_()
        probs = parts * weight[:, None, None, :]
        total = probs.sum(dim=-1, keepdim=True).clamp_(min=1e-30)
        ctx.save_for_backward(parts.div_(total), weight)
        return probs.div_(total)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (given,) = gradients
        parts, weight = ctx.saved_tensors
        if weight is None:
            mean = (given * parts).sum(dim=-1, keepdim=True)
            return (given - mean).mul_(parts), None, None
        factor = weight[:, None, None, :]
        inner = given * parts
        mean = (inner * factor).sum(dim=-1, keepdim=True)
        # Of the exponentials, relative to their sum; the weights' share of it is their gradient.
        inner.addcmul_(parts, mean, value=-1.0)
        return inner * factor, None, inner.sum(dim=(1, 2))
