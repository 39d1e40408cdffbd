"""Which rows become one, on padded batches; the meaning of each selector is in `policy.Select`.

Every function returns int64 [B, S]: for each living row the first row of its group, which is
itself for a row that stays alone, and -1 for rows that are not alive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tokprune_rt import _core
from tokprune_rt.train.select import Spec, ranks, rounded, select


def alone(alive: Tensor) -> Tensor:
    """Nobody merges."""
    places = torch.arange(alive.shape[1], device=alive.device).expand(alive.shape)
    return torch.where(alive, places, -1)


def merged(
    spec: Spec,
    rows: Tensor,
    alive: Tensor,
    protected: Tensor,
    lengths: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Groups of similar rows.

    Args:
        spec: a compiled selection of action merge.
        rows: [B, S, k], compared by cosine; the living ones come first.
        alive, protected, lengths: as for `select`.
        bias: [B, S], added to the similarities of a row's pairs; not for `energy_pairs`.
    """
    unit = functional.normalize(rows.float(), dim=-1)
    free = alive & ~protected
    if spec["kind"] == "energy_pairs":
        return _energy_pairs(spec, unit, alive, free, lengths)
    if spec["kind"] == "all_pairs":
        return _all_pairs(spec, unit, alive, free, lengths, bias)
    return _bipartite(spec, unit, alive, free, lengths, bias)


def _bipartite(
    spec: Spec, unit: Tensor, alive: Tensor, free: Tensor, lengths: Tensor, bias: Tensor | None
) -> Tensor:
    if unit.shape[1] < 2:
        return alone(alive)
    # Living rows come first, so that a row's place is its index among them.
    cosine = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    if bias is not None:
        cosine = cosine + bias[:, 0::2, None] + bias[:, None, 1::2]
    best, partner = cosine.masked_fill(~free[:, None, 1::2], -math.inf).max(dim=-1)
    candidates = torch.zeros_like(alive)
    candidates[:, 0::2] = free[:, 0::2] & (best > -math.inf)
    scores = torch.zeros(alive.shape, device=unit.device)
    scores[:, 0::2] = -best
    target = torch.zeros_like(alive, dtype=torch.int64)
    target[:, 0::2] = 2 * partner + 1
    if spec["theta"] is None:
        rule = {**spec, "kind": "ratio"}
    else:
        rule = {**spec, "kind": "threshold", "theta": -spec["theta"]}
    stays = select(rule, scores, alive, ~candidates, lengths)
    return _joined(alive, candidates & ~stays, target)


def _all_pairs(
    spec: Spec, unit: Tensor, alive: Tensor, free: Tensor, lengths: Tensor, bias: Tensor | None
) -> Tensor:
    similarity = unit @ unit.transpose(1, 2)
    if bias is not None:
        similarity = similarity + bias[:, :, None] + bias[:, None, :]
    count = alive.sum(dim=1)
    left = count if spec["theta"] is not None else _left(spec, alive, lengths)
    if spec["max_tokens"] > 0:
        left = left.clamp(max=spec["max_tokens"])
    least = count - left
    most, above = least, 0.0
    if spec["theta"] is not None:
        most, above = torch.maximum(least, count - spec["min_tokens"]), spec["theta"]
    # A pair depends on those before, and the runtime has a fast loop for that.
    places = torch.arange(alive.shape[1], device=alive.device).expand(alive.shape)
    target = places.cpu().clone()
    for text, (rows, matrix) in enumerate(zip(free.cpu(), similarity.cpu(), strict=True)):
        among = rows.nonzero()[:, 0]
        pairs = matrix[among[:, None], among].contiguous().numpy()
        host = torch.from_numpy(_core.join_rows(pairs, int(least[text]), int(most[text]), above))
        joins = host >= 0
        target[text, among[joins]] = among[host[joins].long()]
    target = target.to(alive.device)
    return _joined(alive, target != places, target)


def _energy_pairs(spec: Spec, unit: Tensor, alive: Tensor, free: Tensor, lengths: Tensor) -> Tensor:
    cosine = unit @ unit.transpose(1, 2)
    margin = spec["margin"]
    energies = torch.where(cosine >= margin, cosine, spec["alpha"] * torch.expm1(cosine - margin))
    energy = (energies * free[:, None, :]).sum(dim=-1) / free.sum(dim=1, keepdim=True).clamp(min=1)
    left = _left(spec, alive, lengths)
    pairs = torch.minimum((alive.sum(dim=1) - left).clamp(min=0), free.sum(dim=1) // 2)
    rank = ranks(energy, free)
    chosen = free & (rank < 2 * pairs[:, None])
    second = chosen & (rank % 2 == 1)
    target = cosine.masked_fill(~second[:, None, :], -math.inf).argmax(dim=-1)
    return _joined(alive, chosen & ~second, target)


def pooled(spec: Spec, alive: Tensor, protected: Tensor, lengths: Tensor) -> Tensor:
    """Groups of neighbours; ``spec`` is a compiled `pool`."""
    free = alive & ~protected
    count, many = alive.sum(dim=1), free.sum(dim=1)
    pinned = count - many
    if spec["stride"]:
        groups = -(-many // spec["stride"])
        # Groups of `stride` from the left; too many of them are cut anew.
        place = (free.cumsum(dim=1) - 1) // spec["stride"]
        most = spec["max_tokens"] or int(1e9)
        over = groups + pinned > most
        groups = torch.where(over, (most - pinned).clamp(min=1), groups)
    else:
        left = _left(spec, alive, lengths)
        groups = torch.minimum((left - pinned).clamp(min=1), many)
        place, over = torch.zeros_like(alive, dtype=torch.int64), torch.ones_like(count) > 0
    # Group g begins at floor(g * many / groups).
    spread = (free.cumsum(dim=1) * groups[:, None] - 1) // many.clamp(min=1)[:, None]
    place = torch.where(over[:, None], spread, place).clamp(min=0)
    places = torch.arange(alive.shape[1], device=alive.device).expand(alive.shape)
    beyond = torch.where(free, places, alive.shape[1])
    first = torch.full_like(places, alive.shape[1]).scatter_reduce(1, place, beyond, "amin")
    return torch.where(free, first.gather(1, place), alone(alive))


def _left(spec: Spec, alive: Tensor, lengths: Tensor) -> Tensor:
    """How many tokens a ratio leaves within its bounds, int64 [B]."""
    total = lengths if spec["of"] == "n0" else alive.sum(dim=1)
    left = rounded(spec["ratio"] * total.double(), spec["round"])
    if spec["max_tokens"] > 0:
        left = left.clamp(max=spec["max_tokens"])
    return left.clamp(min=spec["min_tokens"])


def _joined(alive: Tensor, goes: Tensor, target: Tensor) -> Tensor:
    """The groups when each row that ``goes`` joins the row ``target``, which stays."""
    places = torch.arange(alive.shape[1], device=alive.device).expand(alive.shape)
    host = torch.where(goes, target, places)
    first = places.scatter_reduce(1, host, places, "amin").gather(1, host)
    return torch.where(alive, first, -1)
