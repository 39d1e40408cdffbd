"""Learned Token Pruning (arXiv 2107.00910): a threshold on received attention for each layer.

Soft stage: every layer's output is scaled by sigmoid((score - theta) / temperature), and a penalty
on what stays pushes the thresholds up. Hard stage: the thresholds are frozen and the weights learn
under the runtime's own decisions. Different from the published code: no padding, first or
protected token is scaled or penalised; gradients of the thresholds are clipped apart from the
weights'; the score's normaliser depends on nothing but the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokprune_rt.policy import Policy, parse_policy
from tokprune_rt.train.hard import protected_tokens
from tokprune_rt.train.leaving import FROM_FIRST, Leaving, Shown
from tokprune_rt.train.masked import Pass
from tokprune_rt.train.scores import column_sums, normalise

# Of the mean score, where thresholds begin in the last layer and how sharp the soft decision is.
FIRST_THETA, TEMPERATURE = 0.2, 0.05


class LtpThresholds(nn.Module):
    """One threshold for each layer but the first, in units of the mean score of a sequence.

    Args:
        layers: of the encoder.
        protect: ids of tokens that never leave, beside the first.
        final: the last layer's threshold to begin with; the others rise to it linearly.
        s_pad: divide column sums by this constant, as the published code divides by the length it
            pads to. None: by their mean over unprotected tokens, which leaves attention sinks out.
        leaving: how tokens leave.
    """

    def __init__(
        self,
        layers: int,
        protect: Sequence[int] = (),
        final: float = FIRST_THETA,
        s_pad: float | None = None,
        leaving: Leaving = FROM_FIRST,
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"LTP needs 2 layers or more, the model has {layers}")
        if s_pad is not None and not s_pad > 0:
            raise ValueError(f"s_pad: found {s_pad}; allowed: above 0")
        self.layers = layers
        self.protect = tuple(protect)
        self.s_pad = s_pad
        self.leaving = leaving
        ramp = torch.tensor([final * i / (layers - 1) for i in range(1, layers)])
        self.theta = nn.Parameter(ramp)

    def scores(self, run: Pass, probs: Tensor, protected: Tensor) -> Tensor:
        """What is compared with the thresholds, [B, S]."""
        norm = "unprotected" if self.s_pad is None else "none"
        column = column_sums(probs, run.alive)
        return normalise({"kind": "attn_col", "norm": norm}, run, column, protected)

    def rule(self) -> dict[str, Any]:
        """Who never leaves, in the terms of a compiled plan."""
        return self.leaving.rule(self.protect)

    @torch.no_grad()
    def limit(self) -> None:
        """Keep thresholds where they mean something; to be called after every step."""
        self.theta.clamp_(min=0.0)

    def policy(self, **extra: Any) -> Policy:
        """The policy that drops what falls below the present thresholds."""
        unit = 1.0 if self.s_pad is None else 1.0 / self.s_pad
        score: dict[str, Any] = {"kind": "attn_col", "norm": "unprotected"}
        if self.s_pad is not None:
            score |= {"norm": "const", "n": self.s_pad}
        theta = [float(value) * unit for value in self.theta.detach().cpu()]
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
        document = {
            "format": "token-policy",
            "version": 1,
            "name": "ltp",
            "layers": self.layers,
            "protect": {"first": True, "token_ids": list(self.protect)},
            "limits": {"min_tokens": 2},
            "scores": {"received": score},
            "steps": steps,
            **extra,
        }
        return parse_policy(self.leaving.document(document))


class SoftLtp:
    """The chooser of the soft stage: nobody leaves, rows fade.

    A head per token sees a faded row as it was before, as in a policy that restores.
    """

    def __init__(self, thresholds: LtpThresholds, temperature: float = TEMPERATURE) -> None:
        self._thresholds = thresholds
        self._temperature = temperature

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        pass

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        if layer == 0:
            run.notes["protected"] = protected_tokens(self._thresholds.rule(), run)
            run.notes["stays"] = []
            return
        protected = run.notes["protected"]
        scores = self._thresholds.scores(run, probs, protected)
        run.scores.append(scores)
        theta = self._thresholds.theta[layer - 1]
        stays = torch.sigmoid((scores - theta) / self._temperature)
        run.notes["stays"].append(torch.where(protected, 1.0, stays))

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        before, run.notes["state"] = run.notes.get("state"), hidden
        if layer == 0:
            return hidden
        stays = run.notes["stays"][layer - 1]
        faded: Tensor = hidden * stays[..., None].to(hidden.dtype)
        if not self._thresholds.leaving.restores:
            return faded
        # A step within a layer restores what entered it.
        shown = run.notes.setdefault("shown", Shown(run.real.to(stays.dtype)))
        shown.stays(shown.share * stays, before)
        return shown.rows(hidden) if layer == self._thresholds.layers - 1 else faded


def share_that_stays(run: Pass) -> Tensor:
    """Mean over layers and unprotected tokens of the soft decision, for the penalty."""
    free = (run.real & ~run.notes["protected"]).to(torch.float32)
    count = free.sum().clamp(min=1)
    return torch.stack([(part * free).sum() / count for part in run.notes["stays"]]).mean()
