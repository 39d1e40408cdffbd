"""The declared fields of the policy format, and `parse_policy`, which checks a document."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from .checks import (
    Field,
    boolean,
    child,
    choice,
    fail,
    given,
    integer,
    json_value,
    list_of,
    mapping,
    names,
    number,
    record,
    share,
    show,
    text,
)
from .choices import Score, Select
from .rules import check_policy
from .schema import (
    FORMAT,
    OFF,
    VERSION,
    Limits,
    Output,
    Policy,
    Profile,
    Protect,
    Step,
)
from .storage import FloatArray

RESERVED_SCORES = ("similarity", "uniform")
RESERVED_SELECTORS = ("bipartite", "energy_pairs", "pool")
RESERVED_ACTIONS = ("merge", "pool")


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
}
"""Fields of each executable score kind, beside "kind"."""

_OF_N = Field(choice("n", "n0"), "n")
_OF_REFERENCE = Field(choice("max", "mean"), "max")

SELECTORS: dict[str, dict[str, Field]] = {
    "topk": {"k": Field(integer(0), aligned=True)},
    "ratio": {
        "ratio": Field(number(0, 1), aligned=True),
        "of": _OF_N,
        "round": Field(choice("ceil", "floor", "round"), "ceil"),
    },
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
}
"""Fields of each executable selector, beside "kind" and the bounds every selector takes."""

_BOUNDS = {
    "min_tokens": Field(integer(0), 0, aligned=True),
    "max_tokens": Field(integer(1), None, aligned=True),
}

_PROTECT = {
    "first": Field(boolean, False),
    "last": Field(boolean, False),
    "token_ids": Field(list_of(integer(0)), ()),
    "segment": Field(integer(0), None),
}

_LIMITS = {
    "min_tokens": Field(integer(0), None),
    "max_tokens": Field(integer(1), None),
    "skip_below": Field(integer(0), 0),
}


def _kind(value: object, path: str, table: Mapping[str, Any], reserved: tuple[str, ...]) -> str:
    found = mapping(value, path)
    if "kind" not in found:
        fail(path, 'no field "kind"', names(table))
    kind: str = choice(*table, reserved=reserved)(found["kind"], f"{path}.kind")
    return kind


def _without_kind(value: object, path: str) -> dict[str, object]:
    return {key: item for key, item in mapping(value, path).items() if key != "kind"}


def _parse_score(name: str, value: object, path: str) -> Score:
    kind = _kind(value, path, SCORES, RESERVED_SCORES)
    fields = record(_without_kind(value, path), path, SCORES[kind])
    if "query" in fields:
        fields.update(fields.pop("query"))
    if "from" in fields:
        fields["source"] = fields.pop("from")
    if (fields.get("norm") == "const") != (fields.get("n") is not None):
        found = "no value" if fields.get("n") is None else show(fields["n"])
        fail(f"{path}.n", found, 'a number > 0, given exactly when norm is "const"')
    return Score(id=name, kind=kind, **fields)


def _per_layer(field: Field, layers: tuple[int, ...]) -> Field:
    """Field whose value is one value or a list aligned with `layers`; parses to a tuple."""

    def check(value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            return (field.check(value, path),) * len(layers)
        if len(value) != len(layers):
            aligned = f"one value or a list of {len(layers)}, aligned with layers {list(layers)}"
            fail(path, f"a list of {len(value)}", aligned)
        return tuple(field.check(item, f"{path}[{i}]") for i, item in enumerate(value))

    return Field(check, field.default)


def _bits(field: Field, layers: tuple[int, ...]) -> Field:
    """Field of the rank_bins matrix [layers, B]; parses to a tuple of tuples of 0 and 1."""

    def check(value: object, path: str) -> tuple[tuple[int, ...], ...]:
        shape = f"{len(layers)} lists of B >= 1 bits, one for each of layers {list(layers)}"
        if not isinstance(value, (list, tuple)):
            fail(path, show(value), shape)
        if len(value) != len(layers):
            fail(path, f"a list of {len(value)}", shape)
        rows = tuple(field.check(row, f"{path}[{i}]") for i, row in enumerate(value))
        for i, row in enumerate(rows):
            if not row or len(row) != len(rows[0]):
                fail(f"{path}[{i}]", f"{len(row)} bits", "the same number >= 1 for every layer")
        return rows

    return Field(check)


def _shared(field: Field, layers: tuple[int, ...]) -> Field:
    """Field of a list, not empty, that serves all layers; parses to a tuple of one per layer."""

    def check(value: object, path: str) -> tuple[tuple[Any, ...], ...]:
        parsed: tuple[Any, ...] = field.check(value, path)
        if not parsed:
            fail(path, "an empty list", "at least one value")
        return (parsed,) * len(layers)

    return Field(check)


def _select_fields(kind: str, layers: tuple[int, ...]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for name, field in (SELECTORS[kind] | _BOUNDS).items():
        if name == "bits":
            fields[name] = _bits(field, layers)
        elif name == "ratios":
            fields[name] = _shared(field, layers)
        else:
            fields[name] = _per_layer(field, layers) if field.aligned else field
    return fields


def _split(kind: str, fields: Mapping[str, Any]) -> Select:
    values = {key: value for key, value in fields.items() if isinstance(value, tuple)}
    options = {key: value for key, value in fields.items() if isinstance(value, str)}
    return Select(kind, values, options)


def _parse_select(value: object, path: str, layers: tuple[int, ...]) -> Select:
    kind = _kind(value, path, SELECTORS, RESERVED_SELECTORS)
    fields = _select_fields(kind, layers)
    parsed = record(_without_kind(value, path), path, fields)
    # A default that is spelled out means the same as one left out: keep one canonical form.
    kept: dict[str, Any] = {}
    for key, field in (SELECTORS[kind] | _BOUNDS).items():
        spelled = (field.default,) * len(layers) if field.aligned else field.default
        if parsed[key] not in (field.default, spelled):
            kept[key] = parsed[key]
    return _split(kind, kept)


def _parse_step(value: object, path: str, policy_layers: int) -> Step:
    fields = record(
        value,
        path,
        {
            "layers": Field(list_of(integer(0, policy_layers - 1))),
            "site": Field(choice("embed", "pre", "mid", "post")),
            "score": Field(text),
            "select": Field(lambda item, _: item),
            "action": Field(mapping),
        },
    )
    layers: tuple[int, ...] = fields["layers"]
    if not layers or any(a >= b for a, b in itertools.pairwise(layers)):
        fail(f"{path}.layers", show(list(layers)), "a strictly increasing list, not empty")
    if fields["site"] == "embed" and layers != (0,):
        fail(f"{path}.layers", show(list(layers)), '[0] at site "embed"')
    kinds = dict.fromkeys(("drop", "restore", "package"))
    action = _kind(fields["action"], f"{path}.action", kinds, RESERVED_ACTIONS)
    given(_without_kind(fields["action"], path), f"{path}.action", {})
    select = _parse_select(fields["select"], f"{path}.select", layers)
    return Step(layers, fields["site"], fields["score"], select, action)


def _parse_profile(value: object, path: str, steps: tuple[Step, ...]) -> Profile:
    fields = record(
        value,
        path,
        {
            "theta_scale": Field(number(0), 1.0),
            "steps": Field(list_of(lambda item, _: item), ()),
            "limits": Field(lambda item, at: given(item, at, _LIMITS), {}),
        },
    )
    overrides: list[Select | None] = []
    if "steps" in mapping(value, path) and len(fields["steps"]) != len(steps):
        found = f"a list of {len(fields['steps'])}"
        fail(f"{path}.steps", found, f"a list of {len(steps)}, aligned with the policy's steps")
    for i, item in enumerate(fields["steps"]):
        if item is None:
            overrides.append(None)
            continue
        kind, layers = steps[i].select.kind, steps[i].layers
        parsed = given(item, f"{path}.steps[{i}]", _select_fields(kind, layers))
        overrides.append(_split(kind, parsed) if parsed else None)
    if not any(overrides):
        overrides = []
    return Profile(fields["theta_scale"], tuple(overrides), fields["limits"])


def _parse_output(value: object, path: str) -> Output:
    kinds = choice("cls", "mean", "tokens_restored", "span")
    over = choice("kept", "size", "restored")
    fields = record(value, path, {"kind": Field(kinds), "over": Field(over, None)})
    if fields["over"] is not None and fields["kind"] != "mean":
        fail(f"{path}.over", f'"{fields["over"]}"', 'this field only with kind "mean"')
    return Output(fields["kind"], fields["over"] or "kept")


def _passive(value: object, path: str) -> bool:
    choice("passive")(value, path)
    return True


_TOP = {
    "format": Field(choice(FORMAT)),
    "version": Field(integer(VERSION, VERSION)),
    "layers": Field(integer(1)),
    "name": Field(text, None),
    "protect": Field(lambda v, p: Protect(**record(v, p, _PROTECT)), Protect()),
    "limits": Field(lambda v, p: Limits(**record(v, p, _LIMITS)), Limits()),
    "dead_first": Field(_passive, False),
    "scores": Field(mapping, {}),
    "steps": Field(list_of(lambda item, _: item), ()),
    "profiles": Field(mapping, {}),
    "output": Field(_parse_output, None),
    "provenance": Field(json_value, None),
}


def _check_tensors(tensors: Mapping[str, Any]) -> dict[str, FloatArray]:
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray) or tensor.dtype != np.float32:
            found = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
            fail(f'tensor "{name}"', str(found), "a numpy array of dtype float32")
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def parse_policy(
    document: Mapping[str, Any], tensors: Mapping[str, FloatArray] | None = None
) -> Policy:
    """Parses and validates a policy document.

    Args:
        document: the content of a `token_policy.json`. In memory (not in a file) it may carry its
            tensors itself under "tensors": {name: float32 array}, as some presets do.
        tensors: name -> float32 array, instead of `document["tensors"]`.

    Returns:
        The policy, consistent in itself; `bind_policy` checks it against a model.

    Raises:
        PolicyError: an unknown field, kind, version or tensor, a value out of range, or a
            combination that has no meaning. Nothing is ever ignored: that would change answers.
    """
    body = dict(mapping(document, "$"))
    if tensors is None:
        carried = mapping(body.pop("tensors", {}), "$.tensors")
        tensors = _check_tensors(carried)
    else:
        tensors = _check_tensors(tensors)
    # Told first, because another format or version explains every further difference.
    for key in ("format", "version"):
        given({key: body[key]} if key in body else {}, "$", _TOP)
    fields = record(body, "$", _TOP)
    del fields["format"], fields["version"]

    scores: dict[str, Score] = {}
    for name, item in fields["scores"].items():
        scores[name] = _parse_score(name, item, child("$.scores", name))
    layers = fields["layers"]
    steps = tuple(
        _parse_step(item, f"$.steps[{i}]", layers) for i, item in enumerate(fields["steps"])
    )
    profiles: dict[str, Profile] = {}
    for name, item in fields["profiles"].items():
        if name == OFF or not name:
            fail(child("$.profiles", name), f'the name "{name}"', f'any name except "" and "{OFF}"')
        profiles[name] = _parse_profile(item, child("$.profiles", name), steps)
    fields.update(scores=scores, steps=steps, profiles=profiles, tensors=tensors)
    policy = Policy(**fields)
    check_policy(policy)
    return policy
