"""ToP (arXiv 2306.14393): which ranks leave at which layers, learned under a budget of work.

Tokens are ranked by received attention and the ranks cut into bins. A bit for every layer and bin
says who stays, a gate for every layer whether it drops at all; both are hard-concrete variables
(Louizos et al., 2018), and a Lagrangian holds the expected multiply-adds at a target. Different
from the published code: only tokens that are still there are scored and vote; decisions are taken
straight through, with dead keys masked as at run time; work is counted at real lengths for any
shape; a short stage under the frozen decisions ends the training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokprune_rt.policy import Policy, parse_policy, preset
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train.hard import protected_tokens
from tokprune_rt.train.leaving import FROM_FIRST, Leaving, Shown
from tokprune_rt.train.masked import MaskedEncoder, Pass, logits_of
from tokprune_rt.train.scores import column_sums
from tokprune_rt.train.select import rank_bin, ranks

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
_LIMIT = math.log(100)
# Log-alphas to begin with: bits are almost surely 1; gates are as likely off as on, so that the
# first steps reach the bits behind them.
FIRST_BIT, FIRST_GATE = 3.0, 0.0


@dataclass(frozen=True)
class Widths:
    """What multiply-adds depend on."""

    layers: int
    hidden: int
    intermediate: int

    def macs(self, entering: Tensor, leaving: Tensor) -> Tensor:
        """Of one layer: attention on ``entering`` tokens, what follows it on ``leaving``."""
        d = self.hidden
        # Q, K and V and the scores for all; P V, its projection and the feed-forward for the rest.
        first = 3 * d * d * entering + d * entering * entering
        return first + d * entering * leaving + (d * d + 2 * d * self.intermediate) * leaving


class TopMasks(nn.Module):
    """The bits and gates of all layers but the last.

    Args:
        widths: of the model.
        bins: parts into which ranks are cut.
        protect: ids of tokens that never leave, beside the first.
        leaving: how tokens leave: within a layer or, where a head sees them, after it.
    """

    def __init__(
        self,
        widths: Widths,
        bins: int = 20,
        protect: Sequence[int] = (),
        leaving: Leaving = FROM_FIRST,
    ) -> None:
        super().__init__()
        if widths.layers < 2:
            raise ValueError(f"ToP needs 2 layers or more, the model has {widths.layers}")
        if bins < 2:
            raise ValueError(f"bins: found {bins}; allowed: 2 or more")
        self.widths, self.bins, self.protect = widths, bins, tuple(protect)
        self.leaving = leaving
        places = widths.layers - 1
        # Low ranks are a little likelier to leave, which only breaks the symmetry.
        slope = torch.linspace(0.5, -0.5, bins)
        self.bit = nn.Parameter(FIRST_BIT + slope.repeat(places, 1))
        self.gate = nn.Parameter(torch.full((places,), FIRST_GATE))

    def rule(self) -> dict[str, Any]:
        """Who never leaves, in the terms of a compiled plan."""
        return self.leaving.rule(self.protect)

    @torch.no_grad()
    def limit(self) -> None:
        """Keep log-alphas within bounds; to be called after every step."""
        self.bit.clamp_(-_LIMIT, _LIMIT)
        self.gate.clamp_(-_LIMIT, _LIMIT)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Bits [K, B] and gates [K] of one step: 0 or 1, with the gradient of their soft values."""
        return _straight_through(_drawn(self.bit)), _straight_through(_drawn(self.gate))

    def shares(self) -> Tensor:
        """Expected share of its tokens that each place leaves, [K].

        A sample counts as 1 above one half, which has the probability sigmoid(log-alpha).
        """
        stays = torch.sigmoid(self.bit).mean(dim=1)
        return 1 - (1 - stays) * torch.sigmoid(self.gate)

    def expected_macs(self, lengths: Tensor, pinned: Tensor) -> Tensor:
        """Expected multiply-adds of sequences of these lengths, of which ``pinned`` tokens never
        leave, of the dense model's."""
        return self._share_of_dense(self.shares(), lengths, pinned)

    def _share_of_dense(self, shares: Tensor, lengths: Tensor, pinned: Tensor) -> Tensor:
        dense = self._macs(torch.ones_like(shares), lengths, pinned)
        return self._macs(shares, lengths, pinned) / dense

    def _macs(self, shares: Tensor, lengths: Tensor, pinned: Tensor) -> Tensor:
        left = lengths.to(torch.float32)
        total = torch.zeros((), device=shares.device)
        for layer in range(self.widths.layers):
            after = left
            if layer < len(shares):
                after = pinned + (left - pinned) * shares[layer]
            through = left if self.leaving.restores else after
            total = total + self.widths.macs(left, through).sum()
            left = after
        return total

    @torch.no_grad()
    def frozen(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bits [K, B] and gates [K] that a policy gets: the likely number of zeros, at the lowest
        log-alphas."""
        stays = torch.sigmoid(self.bit)
        bits = torch.ones_like(self.bit, dtype=torch.int64)
        for place, zeros in enumerate((self.bins - stays.sum(dim=1)).round().long().tolist()):
            bits[place, torch.argsort(self.bit[place], stable=True)[:zeros]] = 0
        gates = (torch.sigmoid(self.gate) >= 0.5).long()
        return bits.cpu().numpy(), gates.cpu().numpy()

    @torch.no_grad()
    def frozen_macs(self, lengths: Tensor, pinned: Tensor) -> Tensor:
        """As `expected_macs`, of the frozen bits."""
        bits, gates = (torch.from_numpy(part).float() for part in self.frozen())
        shares = (1 - gates * (1 - bits.mean(dim=1))).to(self.gate.device)
        return self._share_of_dense(shares, lengths, pinned)

    def frozen_share(self, tokens: Sequence[Tokens]) -> float:
        """`frozen_macs` of these sequences, as one number."""
        lengths = torch.tensor([len(item) for item in tokens])
        pinned = torch.tensor([self.leaving.pinned(item, self.protect) for item in tokens])
        device = self.gate.device
        return float(self.frozen_macs(lengths.to(device), pinned.to(device)))

    def policy(self, **extra: Any) -> Policy:
        """The policy of the frozen bits."""
        bits, gates = self.frozen()
        document = preset(
            "top",
            layers=self.widths.layers,
            token_bits=bits,
            gate_bits=gates,
            protect_token_ids=list(self.protect),
            task="tokens" if self.leaving.restores else "cls",
            **extra,
        )
        return parse_policy(self.leaving.document(document))


def _drawn(log_alpha: Tensor) -> Tensor:
    """A hard-concrete sample."""
    noise = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((noise.log() - (1 - noise).log() + log_alpha) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def _straight_through(soft: Tensor) -> Tensor:
    # Exactly 0 or 1: `hard + soft - soft` would not be.
    return soft + ((soft > 0.5).to(soft.dtype) - soft).detach()


class SoftTop:
    """The chooser of one step of the learning stage: sampled bits, gradients through them.

    A head per token sees the last state of a token that left, as in a policy that restores.
    """

    def __init__(self, masks: TopMasks) -> None:
        self._masks = masks
        self._bits, self._gates = masks.sample()

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        pass

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        scores = column_sums(probs, run.alive)
        run.scores.append(scores)
        if layer == 0:
            run.notes["protected"] = protected_tokens(self._masks.rule(), run)
        if layer >= len(self._gates):
            return
        candidates = run.alive & ~run.notes["protected"]
        rank = ranks(scores, candidates)
        place = rank_bin(rank, candidates.sum(dim=1), self._masks.bins)
        # Protected tokens are in some bin, too.
        stays = 1 - self._gates[layer] * (1 - self._bits[layer][place])
        stays = torch.where(candidates, stays, 1.0)
        if run.weight is None:
            run.weight = run.alive.to(stays.dtype)
        # Those that are out already have weight 0; a factor of 1 lets their gradient through.
        run.weight = run.weight * stays
        run.alive = run.alive & (stays.detach() > 0.5)

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        if not self._masks.leaving.restores or run.weight is None:
            return hidden
        shown = run.notes.setdefault("shown", Shown(run.real.to(run.weight.dtype)))
        if layer < len(self._gates):
            shown.stays(run.weight, hidden)
            return hidden
        rows: Tensor = shown.rows(hidden)
        return rows


class Budget(nn.Module):
    """Multipliers that hold the expected work at a target; gradients *ascend* on them.

    Args:
        target: of the dense model's multiply-adds.
        warm_up: share of the stage in which the target falls from 1.
    """

    def __init__(self, target: float, warm_up: float = 0.4) -> None:
        super().__init__()
        if not 0 < target < 1:
            raise ValueError(f"target: found {target}; allowed: above 0, below 1")
        self.target, self.warm_up = target, warm_up
        self.linear = nn.Parameter(torch.zeros(()))
        self.square = nn.Parameter(torch.zeros(()))

    def forward(self, expected: Tensor, done: float) -> Tensor:
        """The penalty on an expected share of work when ``done`` of the stage is over."""
        now = 1 - (1 - self.target) * min(1.0, done / self.warm_up)
        excess = expected - now
        return _ascend(self.linear) * excess + _ascend(self.square) * excess.square()


def _ascend(multiplier: Tensor) -> Tensor:
    """The same value with its gradient turned round."""
    return 2 * multiplier.detach() - multiplier


def ranking_loss(student: Tensor, teacher: Tensor, candidates: Tensor, top: int = 16) -> Tensor:
    """Whether the student's scores put the teacher's best tokens in the teacher's order.

    A LambdaLoss over pairs of the teacher's ``top`` tokens, whose relevance falls by one a rank;
    scores are compared relative to their mean. All arguments [B, S].
    """
    rank = ranks(teacher, candidates)
    count = candidates.sum(dim=1).clamp(min=1)
    relevance = (count.clamp(max=top)[:, None] - rank).clamp(min=0) * candidates
    mean = (student * candidates).sum(dim=1, keepdim=True) / count[:, None]
    scaled = student / mean.clamp(min=1e-12)
    gain = (relevance[:, :, None] - relevance[:, None, :]).clamp(min=0)
    both = candidates & (relevance > 0)
    gain = gain * (both[:, :, None] & both[:, None, :])
    difference = scaled[:, :, None] - scaled[:, None, :]
    loss = gain * nn.functional.softplus(-difference) / math.log(2)
    return loss.sum(dim=(1, 2)).div(top**2).mean()


class _Watching:
    """The chooser of a teacher, which drops nothing: keeps the last layer's scores."""

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        pass

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        run.scores = [column_sums(probs, run.alive)]

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        return hidden


class Teacher:
    """The dense model: what the student should answer, and in which order tokens matter.

    Args:
        encoder: the fine-tuned model.
        masks: the student's.
    """

    def __init__(self, encoder: MaskedEncoder, masks: TopMasks) -> None:
        self._encoder, self._masks = encoder, masks

    def __call__(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Logits of the student's inputs, as `logits_of` gives them, and the ranking loss of its
        early layers."""
        logits, scores = self._pass(run)
        candidates = run.real & ~run.notes["protected"]
        early = run.scores[: max(1, len(self._encoder.layers) // 3)]
        losses = [ranking_loss(own, scores, candidates) for own in early]
        return logits, torch.stack(losses).mean()

    def logits(self, run: Pass) -> Tensor:
        """Logits of the student's inputs, as `logits_of` gives them."""
        return self._pass(run)[0]

    @torch.no_grad()
    def _pass(self, run: Pass) -> tuple[Tensor, Tensor]:
        with self._encoder.choosing(_Watching()):
            output, passed = self._encoder.run(run.inputs)
        return logits_of(output, passed.real), passed.scores[0]
