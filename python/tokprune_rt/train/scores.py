"""Importance scores of padded batches, [B, S]; the meaning of each is in `policy.Score`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokprune_rt.train.masked import Pass

ATTENTION = ("attn_col", "attn_cls", "attn_cum")
ENTROPY = ("row_entropy", "col_entropy")

Spec = Mapping[str, Any]


def column_sums(
    probs: Tensor, voters: Tensor, heads: str = "mean", diagonal: bool = True
) -> Tensor:
    """Probability received by each key from the query rows ``voters`` (bool [B, S])."""
    if not diagonal:
        own = torch.eye(probs.shape[-1], dtype=torch.bool, device=probs.device)
        probs = probs.masked_fill(own, 0.0)
    # A product with 0 and 1 instead of a masked copy of the probabilities.
    return _reduced((voters[:, None, None, :].to(probs.dtype) @ probs).squeeze(2), heads)


def _reduced(each: Tensor, heads: str) -> Tensor:
    """[B, H, S] to [B, S]."""
    if heads == "max":
        return each.amax(dim=1)
    return each.mean(dim=1) if heads == "mean" else each.sum(dim=1)


def _entropy(spec: Spec, run: Pass, probs: Tensor) -> Tensor:
    parts = torch.special.entr(probs)
    if spec["kind"] == "row_entropy":
        each = parts.sum(dim=-1)
    else:
        each = (parts * run.alive[:, None, :, None]).sum(dim=2)
    return spec["sign"] * _reduced(each, spec["heads"])


def statistic(spec: Spec, run: Pass, probs: Tensor, values: Tensor) -> Tensor:
    """One number per key, before it is normalised."""
    if spec["kind"] in ENTROPY:
        return _entropy(spec, run, probs)
    if spec["kind"] == "attn_cls":
        first = probs[:, :, 0]
        if spec["value_norm"]:
            first = first * values.norm(dim=-1)
        return first.mean(dim=1)
    voters = run.alive
    if spec["query"] == "first":
        voters = voters & (torch.arange(voters.shape[1], device=voters.device) == 0)
    elif spec["query"] == "segment":
        voters = voters & (run.segments == spec["segment"])
    return column_sums(probs, voters, spec["heads"], spec["diagonal"])


def normalise(spec: Spec, run: Pass, column: Tensor, protected: Tensor) -> Tensor:
    """Apply the norm of an `attn_col` score over the tokens alive now."""
    if spec["kind"] != "attn_col" or spec["norm"] == "none":
        return column
    if spec["norm"] == "const":
        return column / spec["n"]
    if spec["norm"] == "n0":
        return column / run.lengths[:, None]
    if spec["norm"] == "alive":
        return column / run.alive.sum(dim=1, keepdim=True).clamp(min=1)
    rest = run.alive & ~protected
    mean = (column * rest).sum(dim=1, keepdim=True) / rest.sum(dim=1, keepdim=True).clamp(min=1)
    return column / torch.where(mean > 0, mean, 1.0)
