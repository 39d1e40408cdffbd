"""Kinds of policies that the search chooses among, each with one number per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokprune_rt.policy.preset_parts import assemble

SHARES = (0.0, 0.04, 0.08, 0.12, 0.17, 0.22, 0.28, 0.34, 0.42, 0.5, 0.6)
"""Shares of a layer's tokens that may leave it."""

Shares = tuple[float, ...]

# Above this share one matching would pair tokens that have little in common; a second one finds
# better partners among the merged.
_ONE_ROUND = 0.12


@dataclass(frozen=True)
class Family:
    """A kind of policy.

    Attributes:
        label: what reports call it.
        score: as in a policy.
        site: where its steps stand.
        select, action: as in a policy, without numbers.
        rounds: steps per layer, at most.
    """

    label: str
    score: Mapping[str, Any]
    site: str
    select: str
    action: str
    rounds: int = 1

    def ratios(self, shares: Shares) -> list[list[float]]:
        """For each round, the share of the tokens that every layer leaves."""
        left = [1 - share for share in shares]
        if self.rounds == 1:
            return [[round(value, 4) for value in left]]
        once = [value if 1 - value <= _ONE_ROUND else math.sqrt(value) for value in left]
        again = [value / first for value, first in zip(left, once, strict=True)]
        return [[round(value, 4) for value in part] for part in (once, again)]

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
        ratios = {name: self.ratios(found) for name, found in every.items()}
        steps = []
        overrides: dict[Any, list[dict[str, Any]]] = {name: [] for name in every}
        for number in range(self.rounds):
            rows = {name: found[number] for name, found in ratios.items()}
            layers = [i for i in range(len(shares)) if any(row[i] < 1 for row in rows.values())]
            if not layers:
                continue
            steps.append(
                {
                    "layers": layers,
                    "site": self.site,
                    "score": "score",
                    "select": {"kind": self.select, "ratio": [rows[None][i] for i in layers]},
                    "action": {"kind": self.action},
                }
            )
            for name, row in rows.items():
                overrides[name].append({"ratio": [row[i] for i in layers]})
        extra = dict(options or {})
        if profiles:
            extra["profiles"] = {name: {"steps": overrides[name]} for name in profiles}
        return assemble("calibrated", len(shares), {"score": self.score}, steps, extra)


def _merging(label: str, of: str, site: str, attention: float = 0.0) -> Family:
    score = {"kind": "similarity", "of": of, "attention": attention}
    return Family(label, score, site, "bipartite", "merge", rounds=2 if of == "hidden" else 1)


# How much attention received keeps hidden states apart: found on news texts with MiniLM.
_ATTENTION = 0.1

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
    "merge-keys": _merging("merging of tokens with similar keys (ToMe)", "keys", "mid"),
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
