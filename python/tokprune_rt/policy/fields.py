"""The fields that each part of a policy may have, with the check and the default of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checks import (
    Field,
    boolean,
    choice,
    fail,
    integer,
    list_of,
    number,
    record,
    share,
    show,
    text,
)


def _query(value: object, path: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        fields = record(value, path, {"segment": Field(integer(0))})
        return {"query": "segment", "segment": fields["segment"]}
    if value not in ("alive", "first"):
        fail(path, show(value), '"alive", "first" or {"segment": k}')
    return {"query": value, "segment": None}


def _activation(value: object, path: str) -> str:
    """The engine's name of an activation function, given that or Hugging Face's."""
    from tokprune_rt.loader.config import activation_names

    known = activation_names()
    own = {name: name for name in known.values()}
    return {**known, **own}[choice(*sorted({*known, *own}))(value, path)]


def _sign(value: object, path: str) -> int:
    sign: int = integer(-1, 1)(value, path)
    if sign == 0:
        fail(path, "0", "1 or -1")
    return sign


_HEADS = Field(choice("mean", "sum", "max"), "mean")
_DIAGONAL = Field(boolean, True)
_QUERY = Field(_query, {"query": "alive", "segment": None})
_FROM = Field(choice("this", "previous"), "this")
_ENTROPY = {"heads": _HEADS, "from": _FROM, "sign": Field(_sign, 1)}

SCORES: dict[str, dict[str, Field]] = {
    "attn_col": {
        "heads": _HEADS,
        "diagonal": _DIAGONAL,
        "query": _QUERY,
        "norm": Field(choice("none", "alive", "const", "n0", "unprotected"), "none"),
        "n": Field(number(0, open_low=True), None),
        "from": _FROM,
    },
    "attn_cls": {"value_norm": Field(boolean, False), "from": _FROM},
    "attn_cum": {
        "decay": Field(number(0), 1.0),
        "heads": _HEADS,
        "diagonal": _DIAGONAL,
        "query": _QUERY,
    },
    "row_entropy": _ENTROPY,
    "col_entropy": _ENTROPY,
    "table": {"tensor": Field(text), "index": Field(choice("token", "position"), "token")},
    "random": {"seed": Field(integer(0, 2**64 - 1), 0)},
    "gate": {
        "tensor": Field(text),
        "activation": Field(_activation, "gelu"),
        "softmax": Field(boolean, False),
    },
    "similarity": {
        "of": Field(choice("hidden", "keys"), "hidden"),
        "attention": Field(number(0), 0.0),
    },
    "uniform": {},
}
"""Fields of each kind of score, beside "kind"."""

_RATIO = {
    "ratio": Field(number(0, 1), aligned=True),
    "of": Field(choice("n", "n0"), "n"),
    "round": Field(choice("ceil", "floor", "round"), "ceil"),
}
_COSINE = Field(number(-1, 1), aligned=True)
_OF_REFERENCE = Field(choice("max", "mean"), "max")

SELECTORS: dict[str, dict[str, Field]] = {
    "topk": {"k": Field(integer(0), aligned=True)},
    "ratio": _RATIO,
    "threshold": {
        "theta": Field(number(), aligned=True),
        "floor": Field(number(), 0.0, aligned=True),
    },
    "threshold_n": {"eta": Field(number(), aligned=True)},
    "threshold_rel": {"t": Field(number(), aligned=True), "of": _OF_REFERENCE},
    "gate": {"t": Field(share, aligned=True)},
    "predicted_ratio": {
        "ratios": Field(list_of(number(0, 1))),
        "tensor": Field(text),
        "activation": Field(_activation, "gelu"),
    },
    "quantile": {"q": Field(number(0, 1), aligned=True)},
    "top_p": {"p": Field(number(0, 1), aligned=True)},
    "rank_bins": {
        "bits": Field(list_of(integer(0, 1))),
        "bin_rule": Field(choice("int", "float32"), "int"),
    },
    "bipartite": {**_RATIO, "theta": _COSINE},
    "all_pairs": {**_RATIO, "theta": _COSINE},
    "energy_pairs": {**_RATIO, "margin": _COSINE, "alpha": Field(number(0), 1.0, aligned=True)},
    "pool": {**_RATIO, "stride": Field(integer(2), aligned=True)},
}
"""Fields of each selector, beside "kind" and `BOUNDS`."""

ALTERNATIVES: dict[str, dict[str, tuple[str, ...]]] = {
    "bipartite": {"ratio": ("of", "round"), "theta": ()},
    "all_pairs": {"ratio": ("of", "round"), "theta": ()},
    "pool": {"ratio": ("of", "round"), "stride": ()},
}
"""Selectors with fields of which exactly one is given; each with the fields that belong to it."""

BOUNDS = {
    "min_tokens": Field(integer(0), 0, aligned=True),
    "max_tokens": Field(integer(1), None, aligned=True),
}
"""Fields that every selector takes."""

_LOG_SIZE = {"log_size": Field(boolean, True)}

ACTIONS: dict[str, dict[str, Field]] = {
    "drop": {},
    "restore": {},
    "package": {},
    "merge": _LOG_SIZE,
    "pool": _LOG_SIZE,
}
"""Fields of each action, beside "kind"."""

PROTECT = {
    "first": Field(boolean, False),
    "last": Field(boolean, False),
    "token_ids": Field(list_of(integer(0)), ()),
    "segment": Field(integer(0), None),
}

LIMITS = {
    "min_tokens": Field(integer(0), None),
    "max_tokens": Field(integer(1), None),
    "skip_below": Field(integer(0), 0),
}
