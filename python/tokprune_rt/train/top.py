"""ToP (arXiv 2306.14393): which ranks leave at which layers, learned under a budget of work.

Tokens are ranked by received attention and the ranks cut into bins. A bit for every layer and bin
says who stays, a gate for every layer whether it drops at all; both are hard-concrete variables
(Louizos et al., 2018), and a Lagrangian holds the expected multiply-adds at a target. Different
from the published code: only tokens that are still there are scored and vote; decisions are taken
straight through, with dead keys masked as at run time; work is counted at real lengths for any
shape, with the ranks that a short text really has; training begins at the budget, with a top-k
schedule in the place of bits that are all 1; tokens may leave behind the last attention as well,
where their FFN would be for nothing; a short stage under the frozen decisions ends the training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

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
# Gates begin on: one that is off hides its bits, and over bits that are all 1 it has no gradient.
_FIRST_GATE = 2.0
# The smallest share of a text that a layer begins with, so that the ones behind it still matter.
_LEAST = 0.02
# Lengths and protected tokens to begin with, where nobody says more.
_A_TEXT = (torch.tensor([32]), torch.tensor([2]))


class TopMasks(Method):
    """The bits and gates of all places where tokens may leave.

    Args:
        widths: of the model.
        bins: parts into which ranks are cut.
        protect: ids of tokens that never leave, beside the first.
        leaving: how tokens leave: within a layer or, where a head sees them, after it.
        target: of the dense model's multiply-adds.
        texts: lengths [n] and protected tokens [n] of some, whose work the bits begin with.
    """

    warm_up: ClassVar[float] = 0.0

    def __init__(
        self,
        widths: Widths,
        bins: int = 20,
        protect: Sequence[int] = (),
        leaving: Leaving = FROM_FIRST,
        target: float = 0.5,
        texts: tuple[Tensor, Tensor] = _A_TEXT,
    ) -> None:
        super().__init__("top", widths, protect, leaving)
        if bins < 2:
            raise ValueError(f"bins: found {bins}; allowed: 2 or more")
        self.bins = bins
        # Behind the last attention, a head that reads the first token needs no other. What the
        # first layer's attention says is too little (the paper prunes from the second on), unless
        # the target cannot be had without.
        last = widths.layers - 1 if leaving.restores else widths.layers
        for self.first in (1, 0) if last > 1 else (0,):
            self.places = last - self.first
            shares, work = self._first_shares(target, *texts)
            if work <= target:
                break
        rest = torch.tensor([now / before for before, now in pairwise([1.0, *shares])])
        self.bit = nn.Parameter(_falling_bits(rest, bins))
        self.gate = nn.Parameter(torch.full((self.places,), _FIRST_GATE))

    def _first_shares(
        self, target: float, lengths: Tensor, pinned: Tensor
    ) -> tuple[list[float], float]:
        """What is left at each place, of the tokens that may leave, and the work with it: falling
        linearly, as steeply as it takes to do the ``target`` share of the work."""

        def falling(slope: float) -> list[float]:
            found = [max(_LEAST, 1 - slope * (i + 1)) for i in range(self.places)]
            return found if self.leaving.restores else [*found[:-1], 0.0]

        def work(slope: float) -> float:
            free = lengths - pinned
            left = [pinned + free * share for share in falling(slope)]
            return float(self.macs(lengths, self._of_all_layers(lengths, left)))

        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if work(middle) > target else (low, middle)
        return falling(high), work(high)

    def _of_all_layers(self, lengths: Tensor, left: Sequence[Tensor]) -> list[Tensor]:
        """What every layer leaves, from what the places leave."""
        behind = self.widths.layers - self.first - self.places
        return [lengths.float()] * self.first + [*left, *[left[-1]] * behind]

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
        return self.macs(run.lengths, self._of_all_layers(run.lengths, left[1:]))

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
            locations=range(self.first + 1, self.first + self.places + 1),
            protect_token_ids=list(self.protect),
            task="tokens" if self.leaving.restores else "cls",
            **extra,
        )
        return parse_policy(self.leaving.document(document))


def _falling_bits(shares: Tensor, bins: int) -> Tensor:
    """Log-alphas [K, bins], falling by one from bin to bin, of which ``shares`` [K] are expected
    to stay."""
    low, high = torch.full_like(shares, -bins), torch.full_like(shares, 2 * bins)
    for _ in range(20):
        middle = (low + high) / 2
        bits = (middle[:, None] - torch.arange(bins)).clamp(-_LIMIT, _LIMIT)
        more = torch.sigmoid(bits).mean(dim=1) < shares
        low, high = torch.where(more, middle, low), torch.where(more, high, middle)
    return bits


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
        self._first = masks.first
        self._bits, self._gates = masks.sample()

    def _place(self, layer: int) -> int | None:
        place = layer - self._first
        return place if 0 <= place < len(self._gates) else None

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        scores = column_sums(probs, run.alive)
        run.scores.append(scores)
        place = self._place(layer)
        if place is None:
            return
        candidates = run.alive & ~run.notes["protected"]
        rank = ranks(scores, candidates)
        bits = self._bits[place]
        stays = bits[rank_bin(rank, candidates.sum(dim=1), len(bits))]
        self.leave(run, 1 - self._gates[place] * (1 - stays), candidates)

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        if self._place(layer) is not None:
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
