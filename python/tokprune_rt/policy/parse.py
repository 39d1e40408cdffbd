"""`parse_policy`, which checks a policy document against the fields of the format."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from .checks import (
    Field,
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
    show,
    text,
)
from .choices import Score, Select
from .fields import ACTIONS, ALTERNATIVES, BOUNDS, LIMITS, PROTECT, SCORES, SELECTORS
from .rules import check_policy
from .schema import (
    DEFAULT,
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


def _kind(value: object, path: str, table: Mapping[str, Any]) -> str:
    found = mapping(value, path)
    if "kind" not in found:
        fail(path, 'no field "kind"', names(table))
    kind: str = choice(*table)(found["kind"], f"{path}.kind")
    return kind


def _without_kind(value: object, path: str) -> dict[str, object]:
    return {key: item for key, item in mapping(value, path).items() if key != "kind"}


def _parse_score(name: str, value: object, path: str) -> Score:
    kind = _kind(value, path, SCORES)
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


def _declared(kind: str, present: Collection[str], path: str) -> dict[str, Field]:
    """Fields of a selector that has the fields `present`: the others of `ALTERNATIVES` are out."""
    fields = SELECTORS[kind] | BOUNDS
    options = ALTERNATIVES.get(kind, {})
    chosen = [name for name in options if name in present]
    if options and len(chosen) != 1:
        found = " and ".join(f'"{name}"' for name in chosen) or "none of them"
        fail(path, found, f"exactly one of the fields {names(options)}")
    out = {field for name, own in options.items() if name not in chosen for field in (name, *own)}
    return {name: field for name, field in fields.items() if name not in out}


def _aligned(fields: Mapping[str, Field], layers: tuple[int, ...]) -> dict[str, Field]:
    """The fields of a selector as they are parsed for a step at `layers`."""
    result: dict[str, Field] = {}
    for name, field in fields.items():
        if name == "bits":
            result[name] = _bits(field, layers)
        elif name == "ratios":
            result[name] = _shared(field, layers)
        else:
            result[name] = _per_layer(field, layers) if field.aligned else field
    return result


def _split(kind: str, fields: Mapping[str, Any]) -> Select:
    values = {key: value for key, value in fields.items() if isinstance(value, tuple)}
    options = {key: value for key, value in fields.items() if isinstance(value, str)}
    return Select(kind, values, options)


def _parse_select(value: object, path: str, layers: tuple[int, ...]) -> Select:
    kind = _kind(value, path, SELECTORS)
    body = _without_kind(value, path)
    fields = _declared(kind, body, path)
    parsed = record(body, path, _aligned(fields, layers))
    # A default that is spelled out means the same as one left out: keep one canonical form.
    kept: dict[str, Any] = {}
    for key, field in fields.items():
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
    action = _kind(fields["action"], f"{path}.action", ACTIONS)
    options = record(_without_kind(fields["action"], path), f"{path}.action", ACTIONS[action])
    select = _parse_select(fields["select"], f"{path}.select", layers)
    return Step(layers, fields["site"], fields["score"], select, action, **options)


def _parse_profile(value: object, path: str, steps: tuple[Step, ...]) -> Profile:
    fields = record(
        value,
        path,
        {
            "theta_scale": Field(number(0), 1.0),
            "steps": Field(list_of(lambda item, _: item), ()),
            "limits": Field(lambda item, at: given(item, at, LIMITS), {}),
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
        own, at = steps[i].select, f"{path}.steps[{i}]"
        fields_of_step = _aligned(_declared(own.kind, own.values, at), steps[i].layers)
        parsed = given(item, at, fields_of_step)
        overrides.append(_split(own.kind, parsed) if parsed else None)
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
    "protect": Field(lambda v, p: Protect(**record(v, p, PROTECT)), Protect()),
    "limits": Field(lambda v, p: Limits(**record(v, p, LIMITS)), Limits()),
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
        if name in ("", OFF, DEFAULT):
            others = f'any name except "", "{OFF}" and "{DEFAULT}"'
            fail(child("$.profiles", name), f'the name "{name}"', others)
        profiles[name] = _parse_profile(item, child("$.profiles", name), steps)
    fields.update(scores=scores, steps=steps, profiles=profiles, tensors=tensors)
    policy = Policy(**fields)
    check_policy(policy)
    return policy
