"""ToP (arXiv 2306.14393): which ranks leave at which layers, learned under a budget of work.

Tokens are ranked by received attention and the ranks cut into bins. A bit for every layer and bin
says who stays, a gate for every layer whether it drops at all; both are hard-concrete variables
(Louizos et al., 2018), and a Lagrangian holds the expected multiply-adds at a target. Different
from the published code: only tokens that are still there are scored and vote; decisions are taken
straight through, with dead keys masked as at run time; work is counted at real lengths for any
shape, with the ranks that a short text really has; a short stage under the frozen decisions ends
the training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokprune_rt.policy import Policy, parse_policy, preset
from tokprune_rt.train.budget import Widths
from tokprune_rt.train.leaving import FROM_FIRST, Leaving
from tokprune_rt.train.masked import Pass
from tokprune_rt.train.method import Method, SoftChooser, straight_through
from tokprune_rt.train.scores import column_sums
from tokprune_rt.train.select import rank_bin, ranks

TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
_LIMIT = math.log(100)
# Log-alphas to begin with: bits are almost surely 1; gates are as likely off as on, so that the
# first steps reach the bits behind them. (Gates that begin on cost TREC four points at 45%.) But a
# gate without which the target cannot be met begins on: closed, it would hide its bits.
FIRST_BIT, FIRST_GATE, NEEDED_GATE = 3.0, 0.0, 2.0
# Of the target: what the layers behind a gate must be able to reach for it not to be needed.
_EASE = 0.8


class TopMasks(Method):
    """The bits and gates of all layers but the last.

    Args:
        widths: of the model.
        bins: parts into which ranks are cut.
        protect: ids of tokens that never leave, beside the first.
        leaving: how tokens leave: within a layer or, where a head sees them, after it.
        target: of the dense model's multiply-adds.
    """

    def __init__(
        self,
        widths: Widths,
        bins: int = 20,
        protect: Sequence[int] = (),
        leaving: Leaving = FROM_FIRST,
        target: float = 0.5,
    ) -> None:
        super().__init__("top", widths, protect, leaving)
        if bins < 2:
            raise ValueError(f"bins: found {bins}; allowed: 2 or more")
        self.bins = bins
        places = widths.layers - 1
        # Low ranks are a little likelier to leave, which only breaks the symmetry.
        slope = torch.linspace(0.5, -0.5, bins)
        self.bit = nn.Parameter(FIRST_BIT + slope.repeat(places, 1))
        needed = [self._least(place + 1) > _EASE * target for place in range(places)]
        self.gate = nn.Parameter(
            torch.where(torch.tensor(needed), NEEDED_GATE, FIRST_GATE).to(torch.float32)
        )

    def _least(self, first: int) -> float:
        """Multiply-adds, of the dense model's, of a text that goes at layer ``first``."""
        length, layers = torch.tensor([128.0]), self.widths.layers
        return float(self.macs(length, [length] * first + [0 * length] * (layers - first)))

    def chooser(self) -> SoftTop:
        return SoftTop(self)

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        self.bit.clamp_(-_LIMIT, _LIMIT)
        self.gate.clamp_(-_LIMIT, _LIMIT)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Bits [K, B] and gates [K] of one step: 0 or 1, with the gradient of their soft values."""
        bit, gate = _drawn(self.bit), _drawn(self.gate)
        return straight_through(bit > 0.5, bit), straight_through(gate > 0.5, gate)

    def expected_macs(self, run: Pass) -> Tensor:
        # From probabilities, not from the sample of this step. A sample counts as 1 above one half,
        # which has the probability sigmoid(log-alpha).
        bits, gates = torch.sigmoid(self.bit), torch.sigmoid(self.gate)
        pinned = run.notes["protected"].sum(dim=1)
        left = [run.lengths.to(torch.float32)]
        for stays, gate in zip(bits, gates, strict=True):
            free = left[-1] - pinned
            share = _share_of_ranks(stays, free.detach().round().long())
            left.append(pinned + free * (1 - (1 - share) * gate))
        return self.macs(run.lengths, [*left[1:], left[-1]])

    def macs(self, lengths: Tensor, left: Sequence[Tensor]) -> Tensor:
        if not self.leaving.restores:
            return super().macs(lengths, left)
        # What leaves after a layer has been through all of it.
        entering = [lengths.to(torch.float32), *left[:-1]]
        return self.widths.share_of_dense(lengths, entering, before=True)

    @torch.no_grad()
    def frozen(self, factor: float = 1.0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bits [K, B] and gates [K] that a policy gets: the likely number of zeros, at the lowest
        log-alphas. ``factor`` divides every bit's odds of staying, and multiplies the gates'."""
        stays = torch.sigmoid(self.bit - math.log(factor))
        bits = torch.ones_like(self.bit, dtype=torch.int64)
        for place, zeros in enumerate((self.bins - stays.sum(dim=1)).round().long().tolist()):
            bits[place, torch.argsort(self.bit[place], stable=True)[:zeros]] = 0
        gates = (self.gate + math.log(factor) >= 0).long()
        return bits.cpu().numpy(), gates.cpu().numpy()

    def policy(self, factor: float = 1.0, **extra: Any) -> Policy:
        bits, gates = self.frozen(factor)
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


def _share_of_ranks(stays: Tensor, count: Tensor) -> Tensor:
    """Mean over the ``count`` [B] ranks of a text of what their bins' ``stays`` [bins] say, [B].

    A text with fewer tokens than there are bins reads some bins only.
    """
    rank = torch.arange(max(1, int(count.max())), device=count.device).expand(len(count), -1)
    found = stays[rank_bin(rank, count, len(stays))] * (rank < count[:, None])
    return found.sum(dim=1) / count.clamp(min=1)


def _drawn(log_alpha: Tensor) -> Tensor:
    """A hard-concrete sample."""
    noise = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((noise.log() - (1 - noise).log() + log_alpha) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


class SoftTop(SoftChooser):
    """The chooser of one step of the learning stage: sampled bits, gradients through them."""

    def __init__(self, masks: TopMasks) -> None:
        super().__init__(masks)
        self._bits, self._gates = masks.sample()

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        scores = column_sums(probs, run.alive)
        run.scores.append(scores)
        if layer >= len(self._gates):
            return
        candidates = run.alive & ~run.notes["protected"]
        rank = ranks(scores, candidates)
        bits = self._bits[layer]
        place = rank_bin(rank, candidates.sum(dim=1), len(bits))
        self.leave(run, 1 - self._gates[layer] * (1 - bits[place]), candidates)

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        if layer < len(self._gates):
            self.show(run, hidden)
        return super().after_layer(run, layer, hidden)


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
