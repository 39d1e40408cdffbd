"""PoWER-BERT (arXiv 2001.08950): how many tokens each layer keeps, whatever the text.

Tokens are ranked by received attention. Every layer has a retention in [0, 1] for every rank, by
which rows are multiplied; a budget of work pushes them down. A layer's sum of retentions is the
number of tokens it keeps. Different from the published code: the budget in the place of a penalty;
a protected token is not scaled; a token counts at a layer as far as all layers up to it retain it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokprune_rt.policy import Policy, parse_policy
from tokprune_rt.train.budget import Widths
from tokprune_rt.train.masked import Pass
from tokprune_rt.train.method import Method, SoftChooser
from tokprune_rt.train.scores import column_sums
from tokprune_rt.train.select import ranks


class PowerRetention(Method):
    """The retentions of all layers but the last.

    Args:
        widths: of the model.
        longest: tokens of the longest text.
        protect: ids of tokens that never leave, beside the first.
    """

    def __init__(self, widths: Widths, longest: int, protect: Sequence[int] = ()) -> None:
        super().__init__("power-bert", widths, protect)
        self.retention = nn.Parameter(torch.ones(widths.layers - 1, longest))

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        self.retention.clamp_(0.0, 1.0)

    def chooser(self) -> FadingByRank:
        return FadingByRank(self)

    def kept(self, factor: float = 1.0) -> list[int]:
        """Tokens that each layer keeps beside the protected ones; never more than before it."""
        # Few texts reach the last ranks, whose retentions hardly learn: none counts for more than
        # those before it.
        sums = self.retention.detach().cummin(dim=1).values.sum(dim=1)
        found = [math.ceil(float(part) / factor) for part in sums]
        return [min(found[: i + 1]) for i in range(len(found))]

    def policy(self, factor: float = 1.0, **extra: Any) -> Policy:
        # k counts protected tokens: the first, and about one separator of each text.
        counts = [max(2, kept + 2) for kept in self.kept(factor)]
        step = {
            "layers": list(range(len(counts))),
            "site": "mid",
            "score": "received",
            "select": {"kind": "topk", "k": counts},
            "action": {"kind": "drop"},
        }
        score = {"received": {"kind": "attn_col", "diagonal": False}}
        return parse_policy(self.document(scores=score, steps=[step], **extra))


class FadingByRank(SoftChooser):
    """The chooser of the extraction: nobody leaves, rows fade."""

    def __init__(self, method: PowerRetention) -> None:
        super().__init__(method)
        self._retention = method.retention

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        super().before_layer(run, layer, hidden)
        if layer == 0:
            run.notes["stays"] = run.real.to(torch.float32)

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        if layer == len(self._retention):
            return
        candidates = run.real & ~run.notes["protected"]
        rank = ranks(column_sums(probs, run.alive, diagonal=False), candidates)
        retention = self._retention[layer]
        factor = torch.where(candidates, retention[rank.clamp(max=len(retention) - 1)], 1.0)
        run.notes["factor"] = factor
        run.notes["stays"] = run.notes["stays"] * factor

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        run.notes.setdefault("left", []).append(run.notes["stays"].sum(dim=1))
        if layer == len(self._retention):
            return hidden
        return hidden * run.notes["factor"][..., None].to(hidden.dtype)
