"""The policy of the benchmark: about half of the multiply-adds, by attention received."""

from __future__ import annotations

from typing import Any

# Share of the input left by the first and by the last layer that prunes. These, with
# everything kept up to a sixth of the depth, halve the work of both shapes.
_FIRST, _LAST = 0.44, 0.30

MIN_TOKENS = 2


def kept_shares(layers: int) -> dict[int, float]:
    """Layer -> share of the input that it leaves, rounded up to whole tokens."""
    places = range(layers // 6, layers)
    fall = (_FIRST - _LAST) / max(1, len(places) - 1)
    return {place: round(_FIRST - fall * i, 4) for i, place in enumerate(places)}


def halving_policy(layers: int) -> dict[str, Any]:
    """Each layer after the first sixth keeps a falling share of the input.

    Shares of the input, not thresholds, so that the work depends on nothing but the lengths.
    """
    shares = kept_shares(layers)
    return {
        "format": "token-policy",
        "version": 1,
        "name": "half-macs",
        "layers": layers,
        "protect": {"first": True},
        "limits": {"min_tokens": MIN_TOKENS},
        "scores": {"received": {"kind": "attn_col"}},
        "steps": [
            {
                "layers": list(shares),
                "site": "mid",
                "score": "received",
                "select": {
                    "kind": "ratio",
                    "ratio": list(shares.values()),
                    "of": "n0",
                },
                "action": {"kind": "drop"},
            }
        ],
        "output": {"kind": "mean"},
    }
