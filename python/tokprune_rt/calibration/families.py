"""Kinds of policies that the search chooses among, each with one number per layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokprune_rt.policy.preset_parts import assemble

SHARES = (0.0, 0.04, 0.08, 0.12, 0.17, 0.22, 0.28, 0.34, 0.42, 0.5, 0.6)
"""Shares of a layer's tokens that may leave it."""

Shares = tuple[float, ...]


@dataclass(frozen=True)
class Family:
    """A kind of policy.

    Attributes:
        label: what reports call it.
        score: as in a policy.
        site: where its steps stand.
        select, action: as in a policy, without numbers.
    """

    label: str
    score: Mapping[str, Any]
    site: str
    select: str
    action: str

    def document(
        self,
        shares: Shares,
        profiles: Mapping[str, Shares] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A policy with these shares for every layer, and profiles with others.

        ``options``: protect_*, limits, name and provenance, as in presets.
        """
        every = {None: shares} | dict(profiles or {})
        ratios = {name: [round(1 - share, 4) for share in found] for name, found in every.items()}
        layers = [i for i in range(len(shares)) if any(row[i] < 1 for row in ratios.values())]
        chosen = {name: {"ratio": [row[i] for i in layers]} for name, row in ratios.items()}
        step = {
            "layers": layers,
            "site": self.site,
            "score": "score",
            "select": {"kind": self.select} | chosen[None],
            "action": {"kind": self.action},
        }
        extra = dict(options or {})
        if profiles:
            extra["profiles"] = {name: {"steps": [chosen[name]]} for name in profiles}
        steps = [step] if layers else []
        return assemble("calibrated", len(shares), {"score": self.score}, steps, extra)


def _merging(label: str, of: str, site: str, attention: float = 0.0) -> Family:
    score = {"kind": "similarity", "of": of, "attention": attention}
    return Family(label, score, site, "all_pairs", "merge")


# How much attention received keeps hidden states apart: found on news texts with MiniLM.
_ATTENTION = 0.2

FAMILIES = {
    "merge": _merging("merging of similar hidden states before the FFN", "hidden", "mid"),
    "merge-weighed": _merging(
        "merging of similar hidden states that receive little attention, before the FFN",
        "hidden",
        "mid",
        _ATTENTION,
    ),
    "merge-after": _merging(
        "merging of similar hidden states that receive little attention, after the layer",
        "hidden",
        "post",
        _ATTENTION,
    ),
    "merge-keys": _merging("merging of tokens with similar keys", "keys", "mid"),
    "drop": Family("dropping by attention received", {"kind": "attn_col"}, "mid", "ratio", "drop"),
    "pool": Family(
        "means of neighbours after the layer", {"kind": "uniform"}, "post", "pool", "pool"
    ),
}

PAIR_FAMILIES = {
    **FAMILIES,
    "drop-asked": Family(
        "dropping by the attention of the first text's tokens",
        {"kind": "attn_col", "query": {"segment": 0}},
        "mid",
        "ratio",
        "drop",
    ),
}
"""For pairs of a query and a document, whose query stays."""
