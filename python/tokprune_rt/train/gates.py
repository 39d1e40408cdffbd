"""Gates: a small network before a layer reads a token's state and says whether it goes on.

Shapes: `transkimmer` (arXiv 2205.07324), a hidden layer as wide as the model and two outputs before
every layer but the first; `tr-bert` (arXiv 2105.11618), one output before layer 1 and the middle
layer; `adapler` (arXiv 2203.08991), 32 hidden units and a softmax over the tokens of the text,
compared with eta / n. All are learned in the same way, straight through the decision, under a
budget of work that counts the gates themselves. The first two begin with noise (Gumbel's, as in
Transkimmer), which fades, so that the budget is met by what evaluation does: never a draw. Where
the budget is not much more than the first layer's work, tokens may leave before that one as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokprune_rt.policy import Policy, parse_policy
from tokprune_rt.train.budget import Widths
from tokprune_rt.train.leaving import FROM_FIRST, Leaving
from tokprune_rt.train.masked import Pass
from tokprune_rt.train.method import Method, SoftChooser, straight_through

SHAPES = ("transkimmer", "adapler", "tr-bert")
# Logit with which tokens stay to begin with, the share of 1 / n that AdapLeR's threshold begins
# with, and how sharp its soft decision is.
_FIRST_LOGIT, _FIRST_ETA, _TEMPERATURE = 3.0, 0.1, 0.1
_HIDDEN = 32
# Work of so many layers, below which the first one is not done for all tokens.
_FIRST_LAYERS = 1.25


class Gates(Method):
    """A gate for each of several layers.

    Args:
        widths: of the model.
        shape: one of `SHAPES`.
        protect: ids of tokens that never leave, beside the first.
        leaving: how tokens leave.
        target: of the dense model's multiply-adds.
    """

    noise: Tensor
    """How much of it there is, from 1 to 0."""

    def __init__(
        self,
        widths: Widths,
        shape: str,
        protect: Sequence[int] = (),
        leaving: Leaving = FROM_FIRST,
        target: float = 0.5,
    ) -> None:
        if shape not in SHAPES:
            raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
        super().__init__(shape, widths, protect, leaving)
        self.softmax = shape == "adapler"
        first = 0 if target < _FIRST_LAYERS / widths.layers else 1
        every = tuple(range(first, widths.layers))
        few = tuple(sorted({first, widths.layers // 2}))
        self.layers = few if shape == "tr-bert" else every
        width = _HIDDEN if self.softmax else widths.hidden
        outputs = 2 if shape == "transkimmer" else 1
        hidden = [nn.Linear(widths.hidden, width) for _ in self.layers]
        output = [nn.Linear(width, outputs) for _ in self.layers]
        self._cost = width * (widths.hidden + outputs)
        self.hidden, self.output = nn.ModuleList(hidden), nn.ModuleList(output)
        with torch.no_grad():
            for name, value in self.output.named_parameters():
                if name.endswith("bias"):
                    value.zero_()
                    if not self.softmax:
                        value[-1] = _FIRST_LOGIT
        self.register_buffer("noise", torch.ones(()))
        self.eta = nn.Parameter(torch.full((len(self.layers),), _FIRST_ETA), self.softmax)

    def score(self, place: int, hidden: Tensor, alive: Tensor) -> Tensor:
        """Of the tokens before layer ``layers[place]``, [B, S]: a logit; AdapLeR's shape: the
        share of the attention of all, times the number of tokens."""
        found = self.output[place](functional.gelu(self.hidden[place](hidden.float())))
        logit = found[..., -1] - found[..., 0] if found.shape[-1] == 2 else found[..., 0]
        if not self.softmax:
            return logit
        shares = torch.softmax(logit.masked_fill(~alive, -math.inf), dim=1)
        return shares * alive.sum(dim=1, keepdim=True)

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        self.noise.fill_(1 - done)
        self.eta.clamp_(min=0.0)

    def chooser(self) -> SoftGates:
        return SoftGates(self)

    def macs(self, lengths: Tensor, left: Sequence[Tensor]) -> Tensor:
        total = self.widths.share_of_dense(lengths, left, before=True)
        entering = [lengths.to(left[0].dtype), *left]
        read = sum((entering[layer] for layer in self.layers), torch.zeros_like(left[0]))
        return total + self._cost * read.sum() / self.widths.dense(lengths)

    def policy(self, factor: float = 1.0, **extra: Any) -> Policy:
        tensors = {}
        for place, layer in enumerate(self.layers):
            for name, part in (("hidden", self.hidden[place]), ("output", self.output[place])):
                for kind, value in part.named_parameters():
                    tensors[f"gate.{layer}.{name}.{kind}"] = value.detach().float().cpu().numpy()
        score: dict[str, Any] = {"kind": "gate", "tensor": "gate", "activation": "gelu"}
        if self.softmax:
            score["softmax"] = True
            eta = [float(value) * factor for value in self.eta.detach()]
            select: dict[str, Any] = {"kind": "threshold_n", "eta": eta}
        else:
            select = {"kind": "gate", "t": factor / (1 + factor)}
        step = {
            "layers": list(self.layers),
            "site": "pre",
            "score": "gate",
            "select": select,
            "action": {"kind": "drop"},
        }
        document = self.document(scores={"gate": score}, steps=[step], **extra)
        return parse_policy(document, tensors)


class SoftGates(SoftChooser):
    """The chooser of one step of the learning stage."""

    def __init__(self, gates: Gates) -> None:
        super().__init__(gates)
        self._gates = gates

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        super().before_layer(run, layer, hidden)
        gates = self._gates
        if layer not in gates.layers:
            return
        place = gates.layers.index(layer)
        scores = gates.score(place, hidden, run.alive)
        run.scores.append(scores)
        if gates.softmax:
            distance = (scores - gates.eta[place]) / _TEMPERATURE
        else:
            noise = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
            distance = scores + gates.noise * (noise.log() - (1 - noise).log())
        # Not a sigmoid: before the budget asks for anything, the task drives logits so far up that
        # its gradient is zero, and the gate would stay open for good.
        soft = (1 + distance / (1 + distance.abs())) / 2
        stays = straight_through(distance >= 0, soft)
        self.leave(run, stays, run.alive & ~run.notes["protected"])
        self.show(run, hidden)
