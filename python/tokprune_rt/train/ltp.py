"""Learned Token Pruning (arXiv 2107.00910): a threshold on received attention for each layer.

First stage: the thresholds learn, with the weights, from the task and from a budget of work. Second
stage: they are frozen and the weights go on under the runtime's own decisions. Different from the
published code, whose soft decisions are not the hard ones: tokens leave as they will at run time
and the gradient of sigmoid((score - theta) / temperature) goes straight through; a budget takes the
place of a penalty on what stays, of which no padding, first or protected token is part; gradients
of the thresholds are clipped apart from the weights'; the score's normaliser depends on nothing but
the sequence; thresholds are scaled once more at the end, since the tokens kept drift up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokprune_rt.policy import Policy, parse_policy
from tokprune_rt.train.budget import Widths
from tokprune_rt.train.leaving import FROM_FIRST, Leaving
from tokprune_rt.train.masked import Pass
from tokprune_rt.train.method import Method, SoftChooser, straight_through
from tokprune_rt.train.scores import column_sums, normalise

# Of the mean score, where thresholds begin in the last layer and how sharp the soft decision is.
FIRST_THETA, TEMPERATURE = 0.2, 0.05


class LtpThresholds(Method):
    """One threshold for each layer but the first, in units of the mean score of a sequence.

    Args:
        widths: of the model.
        protect: ids of tokens that never leave, beside the first.
        final: the last layer's threshold to begin with; the others rise to it linearly.
        s_pad: divide column sums by this constant, as the published code divides by the length it
            pads to. None: by their mean over unprotected tokens, which leaves attention sinks out.
        temperature: of the soft decision.
        leaving: how tokens leave.
    """

    def __init__(
        self,
        widths: Widths,
        protect: Sequence[int] = (),
        final: float = FIRST_THETA,
        s_pad: float | None = None,
        temperature: float = TEMPERATURE,
        leaving: Leaving = FROM_FIRST,
    ) -> None:
        super().__init__("ltp", widths, protect, leaving)
        if s_pad is not None and not s_pad > 0:
            raise ValueError(f"s_pad: found {s_pad}; allowed: above 0")
        self.s_pad, self.temperature = s_pad, temperature
        last = widths.layers - 1
        self.theta = nn.Parameter(torch.tensor([final * i / last for i in range(1, last + 1)]))

    def scores(self, run: Pass, probs: Tensor, protected: Tensor) -> Tensor:
        """What is compared with the thresholds, [B, S]."""
        norm = "unprotected" if self.s_pad is None else "none"
        column = column_sums(probs, run.alive)
        return normalise({"kind": "attn_col", "norm": norm}, run, column, protected)

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        self.theta.clamp_(min=0.0)

    def chooser(self) -> SoftLtp:
        return SoftLtp(self)

    def policy(self, factor: float = 1.0, **extra: Any) -> Policy:
        score: dict[str, Any] = {"kind": "attn_col", "norm": "unprotected"}
        if self.s_pad is not None:
            score |= {"norm": "const", "n": self.s_pad}
            factor /= self.s_pad
        theta = [float(value) * factor for value in self.theta.detach().cpu()]
        active = [i for i, value in enumerate(theta, 1) if value > 0]
        steps = []
        if active:
            select = {"kind": "threshold", "theta": [theta[i - 1] for i in active]}
            steps.append(
                {
                    "layers": active,
                    "site": "mid",
                    "score": "received",
                    "select": select,
                    "action": {"kind": "drop"},
                }
            )
        return parse_policy(self.document(scores={"received": score}, steps=steps, **extra))


class SoftLtp(SoftChooser):
    """The chooser of the first stage."""

    def __init__(self, thresholds: LtpThresholds) -> None:
        super().__init__(thresholds)
        self._thresholds = thresholds

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        if layer == 0:
            return
        thresholds, protected = self._thresholds, run.notes["protected"]
        scores = thresholds.scores(run, probs, protected)
        run.scores.append(scores)
        distance = scores - thresholds.theta[layer - 1]
        stays = straight_through(distance >= 0, torch.sigmoid(distance / thresholds.temperature))
        self.leave(run, stays, run.alive & ~protected)
        self.show(run, hidden)
