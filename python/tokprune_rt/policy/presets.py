"""Policies from the parameters of published methods.

`preset(name, layers=..., ...)` returns a policy document for `parse_policy`, `load` or `export`;
only `layers`, the layer count of the model, is always required. Without learned parameters every
preset has a mild setting that works untrained, except `static-idf`, which needs its table, and
`transkimmer`, `adapler`, `tr-bert` and `ad-tp`, which need their networks.

Every preset also takes:
    protect_first, protect_last, protect_token_ids, protect_segment: tokens that never leave.
        Untrained settings protect the first and the last token: special tokens soak up attention
        in most encoders and would distort the choice. For pairs, add the separator's id.
    min_tokens, max_tokens, skip_below: see `Limits`.
    action: "drop" (default), "restore" (models with an output per token; the default of
        `transkimmer`) or "package". Not for `top`, whose `task` decides it, nor for those that
        merge or pool: `tome`, `pitome`, `ltmp`, `mid-pool` and `jasper-pool`.
    output: {"kind": ..., "over": ...}; left to the model by default.
    profiles: {name: overrides}; see `Profile`.
    name, provenance: stored as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .preset_parts import Document
from .presets_free import entropy, idf_table, quantile, spatten, static_idf, top_p, topk
from .presets_gates import ad_tp, adapler, tr_bert, transkimmer
from .presets_learned import lat, ltp, power_bert, top
from .presets_merge import jasper_pool, ltmp, mid_pool, pitome, tome

__all__ = [
    "PRESETS",
    "ad_tp",
    "adapler",
    "entropy",
    "idf_table",
    "jasper_pool",
    "lat",
    "ltmp",
    "ltp",
    "mid_pool",
    "parameters",
    "pitome",
    "power_bert",
    "preset",
    "quantile",
    "spatten",
    "static_idf",
    "tome",
    "top",
    "top_p",
    "topk",
    "tr_bert",
    "transkimmer",
]

PRESETS: dict[str, Callable[..., Document]] = {
    "ltp": ltp,
    "top": top,
    "topk": topk,
    "power-bert": power_bert,
    "spatten": spatten,
    "lat": lat,
    "quantile": quantile,
    "top-p": top_p,
    "entropy": entropy,
    "static-idf": static_idf,
    "transkimmer": transkimmer,
    "adapler": adapler,
    "tr-bert": tr_bert,
    "ad-tp": ad_tp,
    "tome": tome,
    "pitome": pitome,
    "ltmp": ltmp,
    "mid-pool": mid_pool,
    "jasper-pool": jasper_pool,
}
"""Name -> builder of a policy document."""


def preset(name: str, /, **params: Any) -> Document:
    """Builds the policy document of a published method.

    Args:
        name: a key of `PRESETS`.
        params: the method's own parameters (`layers` at least; see ``help(presets.quantile)`` and
            the like) and the common ones of this module.

    Returns:
        A validated document for `parse_policy`; with "tensors" where the method has a table.

    Raises:
        ValueError: an unknown preset or a parameter out of range (`PolicyError` when the format
            itself rules it out).
        TypeError: an unknown or missing parameter.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; allowed: {', '.join(PRESETS)}")
    try:
        return PRESETS[name](**params)
    except TypeError as error:
        own = ", ".join(parameters(name))
        raise TypeError(f"{error}; parameters of {name}: {own}, layers") from error


def parameters(name: str) -> list[str]:
    """The method's own parameters of a preset, besides ``layers`` and the common ones."""
    return [
        key
        for key, item in inspect.signature(PRESETS[name]).parameters.items()
        if item.kind is inspect.Parameter.KEYWORD_ONLY and key != "layers"
    ]
