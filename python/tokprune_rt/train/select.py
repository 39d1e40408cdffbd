"""Selectors on padded batches; the meaning of each is in `policy.Select`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Spec = Mapping[str, Any]


def select(spec: Spec, scores: Tensor, alive: Tensor, protected: Tensor, lengths: Tensor) -> Tensor:
    """Who stays, bool [B, S].

    Args:
        spec: a compiled selection, see `policy.compile_plan`.
        scores: float [B, S].
        alive: bool [B, S].
        protected: bool [B, S]; stay when alive.
        lengths: int64 [B], tokens of the inputs.
    """
    candidates = alive & ~protected
    pinned = (alive & protected).sum(dim=1)
    rank = ranks(scores, candidates)
    stays = _base(spec, scores, rank, alive, candidates, pinned, lengths) & candidates
    stays = _limited(spec, stays, rank, candidates, pinned)
    return stays | (alive & protected)


def ranks(scores: Tensor, candidates: Tensor) -> Tensor:
    """Place of every candidate in descending order, from 0; equal scores: lower position first."""
    keys = scores.detach().masked_fill(~candidates, -math.inf)
    order = torch.sort(keys, dim=1, descending=True, stable=True).indices
    # Others go behind the candidates, whose scores may be -inf as well.
    order = order.gather(1, torch.sort(~candidates.gather(1, order), dim=1, stable=True).indices)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _base(
    spec: Spec,
    scores: Tensor,
    rank: Tensor,
    alive: Tensor,
    candidates: Tensor,
    pinned: Tensor,
    lengths: Tensor,
) -> Tensor:
    kind = spec["kind"]
    count = candidates.sum(dim=1)
    if kind == "topk":
        return rank < (spec["k"] - pinned)[:, None]
    if kind in ("ratio", "predicted_ratio"):
        total = lengths if spec.get("of") == "n0" else alive.sum(dim=1)
        kept = rounded(spec["ratio"] * total.double(), spec.get("round", "ceil"))
        return rank < (kept - pinned)[:, None]
    if kind == "quantile":
        leave = torch.floor(spec["q"] * count.double() + 1e-9).long()
        return rank < (count - leave)[:, None]
    if kind == "rank_bins":
        bits = torch.tensor(spec["bits"], dtype=torch.bool, device=scores.device)
        return bits[rank_bin(rank, count, len(bits), spec["bin_rule"])]
    if kind == "top_p":
        return rank < _top_p_count(spec["p"], scores, rank, candidates)[:, None]
    return scores.float() >= _threshold(spec, scores, alive)


def rounded(value: Tensor, how: str) -> Tensor:
    # The slack keeps a product like 0.7 * 10 from falling on the wrong side of a whole number.
    if how == "ceil":
        return torch.ceil(value - 1e-9).long()
    return (torch.floor(value + 1e-9) if how == "floor" else torch.round(value)).long()


def rank_bin(rank: Tensor, count: Tensor, bins: int, rule: str = "int") -> Tensor:
    """The bin of every rank, int64 [B, S]; ranks that no candidate has end up in some bin too."""
    if rule == "float32":
        share = rank.float() / (count.float() + 1e-6)[:, None]
        return (share * bins).long().clamp(max=bins - 1)
    return (rank * bins // count.clamp(min=1)[:, None]).clamp(max=bins - 1)


def _threshold(spec: Spec, scores: Tensor, alive: Tensor) -> Tensor:
    if spec["kind"] == "gate":
        return torch.tensor(spec["threshold"], dtype=torch.float32, device=scores.device)
    if spec["kind"] == "threshold":
        return torch.tensor(spec["theta"], dtype=torch.float32, device=scores.device)
    count = alive.sum(dim=1, keepdim=True).clamp(min=1)
    if spec["kind"] == "threshold_n":
        return (spec["eta"] / count.double()).float()
    if spec["kind"] != "threshold_rel":
        raise ValueError(f"selector {spec['kind']!r} is not available in training")
    if spec["of"] == "max":
        reference = scores.masked_fill(~alive, -math.inf).amax(dim=1, keepdim=True)
    else:
        reference = (scores * alive).sum(dim=1, keepdim=True) / count
    return (spec["t"] * reference.double()).float()


def _top_p_count(p: float, scores: Tensor, rank: Tensor, candidates: Tensor) -> Tensor:
    """Length of the shortest prefix of the ranking whose sum reaches p of the total, [B]."""
    values = scores.detach().double().masked_fill(~candidates, 0.0)
    ranked = torch.zeros_like(values).scatter_(1, rank, values)
    sums = torch.cumsum(ranked, dim=1)
    count = candidates.sum(dim=1)
    total = sums[:, -1:]
    missing = (sums < p * total).sum(dim=1) + 1
    reached = torch.where(p * total[:, 0] <= 0, 0, missing)
    return torch.minimum(reached, count)


def _limited(spec: Spec, stays: Tensor, rank: Tensor, candidates: Tensor, pinned: Tensor) -> Tensor:
    """Add the best of those that leave up to min_tokens, remove the worst above max_tokens."""
    left = candidates & ~stays
    missing = spec["min_tokens"] - pinned - stays.sum(dim=1)
    if bool((missing > 0).any()):
        place = ranks(-rank.double(), left)
        stays = stays | (left & (place < missing[:, None]))
    if spec["max_tokens"] > 0:
        room = (spec["max_tokens"] - pinned).clamp(min=0)
        stays = stays & (ranks(-rank.double(), stays) < room[:, None])
    return stays
