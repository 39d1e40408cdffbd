"""What the presets share: common parameters, schedules, assembly of the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import integer
from .parse import parse_policy
from .schema import FORMAT, VERSION

Document = dict[str, Any]

_PROTECT = ("first", "last", "token_ids", "segment")
_LIMITS = ("min_tokens", "max_tokens", "skip_below")
_OPTIONS = {
    *(f"protect_{key}" for key in _PROTECT),
    *_LIMITS,
    *("output", "profiles", "name", "provenance"),
}


def build(
    method: str,
    layers: int,
    score: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    special: bool = True,
    **extra: Any,
) -> Document:
    """Document of a method whose steps (layers, site, select) share a score and an action.

    The action is one of the options; see `assemble` for the rest.
    """
    _check_names(method, options, {*_OPTIONS, "action"})
    rest = {key: value for key, value in options.items() if key != "action"}
    action = {"kind": options.get("action", "drop")}
    complete = [{**step, "score": "importance", "action": action} for step in steps]
    scores = {"importance": score}
    return assemble(method, layers, scores, complete, rest, special=special, **extra)


def assemble(
    method: str,
    layers: int,
    scores: Mapping[str, Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    special: bool = True,
    **extra: Any,
) -> Document:
    """Assembles and validates a document from scores, steps and the common options.

    `special` protects first and last token by default, otherwise only the first; `extra` are
    further top-level fields.
    """
    _check_names(method, options, _OPTIONS)
    defaults: dict[str, Any] = {} if "dead_first" in extra else {"first": True, "last": special}
    protect = {key: options.get(f"protect_{key}", defaults.get(key)) for key in _PROTECT}
    if protect["token_ids"] is not None:
        protect["token_ids"] = listed(protect["token_ids"])
    limits = {key: options.get(key) for key in _LIMITS}
    document: Document = {
        "format": FORMAT,
        "version": VERSION,
        "layers": layers,
        "name": options.get("name"),
        "protect": {key: value for key, value in protect.items() if value is not None},
        "limits": {key: value for key, value in limits.items() if value is not None},
        "scores": scores,
        "steps": steps,
        "profiles": options.get("profiles"),
        "output": options.get("output"),
        "provenance": {"method": method, **(options.get("provenance") or {})},
        **extra,
    }
    policy = parse_policy({key: value for key, value in document.items() if value is not None})
    return policy.to_dict() | ({"tensors": dict(policy.tensors)} if policy.tensors else {})


def _check_names(method: str, options: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(options.keys() - known)
    if unknown:
        allowed = ", ".join(sorted(known))
        raise TypeError(f"preset {method!r}: unknown parameter {unknown[0]!r}; common: {allowed}")


def locate(
    layers: int, locations: Sequence[int] | None, values: object, *, start: int = 2
) -> list[int]:
    """Layers that prune.

    By default the last K for a list of K values, else all from layer `start` on: attention of the
    first layers ranks tokens badly.
    """
    integer(1)(layers, "layers")
    if locations is not None:
        return list(locations)
    if not isinstance(values, list):
        return list(range(min(start, layers - 1), layers))
    if len(values) > layers:
        raise ValueError(f"found {len(values)} values; allowed: {layers}, the number of layers")
    return list(range(layers - len(values), layers))


def listed(value: npt.ArrayLike) -> Any:
    """Plain Python numbers, in nested lists, of a number, a sequence or an array."""
    return np.asarray(value).tolist()


def step(layers: Sequence[int], kind: str, *, site: str = "mid", **select: Any) -> Document:
    return {"layers": list(layers), "site": site, "select": {"kind": kind, **select}}


def ramp(count: int, first: float, last: float) -> list[float]:
    """`count` numbers from `first` to `last` in equal steps; just `last` when there is one."""
    if count == 1:
        return [last]
    shares = [i / (count - 1) for i in range(count)]
    return [first * (1 - share) + last * share for share in shares]
