"""Precisions that are measured: who runs which, and how far from fp32 a result may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT = "fp32"
AUTO = "auto"
PRECISIONS = ("fp32", "bf16x3", "bf16", "int8")
"""In the order of a report."""

# Other engines have nothing like bf16x3, which gives fp32's answers, so it races their fp32.
_RIVAL = {"bf16x3": "fp32"}
_WEIGHT_BYTES = {"fp32": 4, "bf16x3": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Tolerance:
    """How far from the reference's fp32 result a result may be.

    Attributes:
        cosine: least cosine of a sequence's mean hidden state to the reference's.
        token_cosine: least cosine of a token's hidden state.
        difference: largest difference of an element of a hidden state; None: any.
        tie: scores that differ by less than this share of the greater one are equal, so that
            either token may be kept.
        fatal: whether a worse result ends the run; otherwise it only gets no time.
    """

    cosine: float
    token_cosine: float
    difference: float | None
    tie: float
    fatal: bool


_EXACT = Tolerance(0.9999, 0.999, 1e-3, 1e-4, fatal=True)
TOLERANCES = {
    "fp32": _EXACT,
    "bf16x3": _EXACT,
    "bf16": Tolerance(0.999, 0.98, None, 0.05, fatal=False),
    "int8": Tolerance(0.97, 0.7, None, 0.25, fatal=False),
}


def check_precisions(names: Sequence[str]) -> list[str]:
    """``names`` once each; ValueError when one of them is no precision or there are none."""
    known = (*PRECISIONS, AUTO)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown precision {name!r}; there are {', '.join(known)}")
    if not names:
        raise ValueError(f"give at least one precision of {', '.join(known)}")
    return list(dict.fromkeys(names))


def rival(precision: str) -> str:
    """The precision at which other engines compete with this package at ``precision``."""
    return _RIVAL.get(precision, precision)


def weight_bytes(precision: str) -> int:
    """Bytes of one weight of a linear layer."""
    return _WEIGHT_BYTES[precision]
