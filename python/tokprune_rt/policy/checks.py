"""Composable checks for JSON values, from which the policy schema is declared.

A `Check` takes a value and its JSON path (`$.steps[0].select.k`) and returns the parsed value or
raises `PolicyError` naming the path, the value found and what is allowed. Objects are declared as
tables of `Field`; `record` parses one completely, `given` only the fields that are present.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import PolicyError

Check = Callable[[object, str], Any]

INT_MAX = 2**31 - 1
"""Largest integer of a policy: counts, layers and token ids are 32 bit in the engine."""

REQUIRED: Any = object()
"""Default of a `Field` that must be present."""

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlist = _repr.maxdict = _repr.maxtuple = 6


@dataclass(frozen=True)
class Field:
    """A field of a JSON object.

    Attributes:
        check: applied to the value, or to each element when `aligned`.
        default: value of an absent field; `REQUIRED` when it must be present.
        aligned: the field is one value or a list aligned with the layers of its step.
    """

    check: Check
    default: Any = REQUIRED
    aligned: bool = False


def show(value: object) -> str:
    """One-line, shortened rendering of a value for messages."""
    return " ".join(_repr.repr(value).split())


def names(options: Collection[str]) -> str:
    """Readable list of allowed names."""
    return ", ".join(f'"{option}"' for option in options) or "nothing"


def child(path: str, key: object) -> str:
    """JSON path of the member `key` of the object at `path`."""
    plain = isinstance(key, str) and key.isidentifier()
    return f"{path}.{key}" if plain else f"{path}[{show(key)}]"


def fail(path: str, found: str, allowed: str) -> NoReturn:
    """Raises the `PolicyError` for one JSON path."""
    raise PolicyError(f"{path}: found {found}; allowed: {allowed}")


def integer(low: int, high: int = INT_MAX) -> Check:
    """An integer in low..high; booleans and floats are refused."""
    allowed = f"an integer >= {low}" if high == INT_MAX else f"an integer in {low}..{high}"

    def check(value: object, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            fail(path, show(value), allowed)
        result = int(value)
        if not low <= result <= high:
            fail(path, show(value), allowed)
        return result

    return check


def number(low: float = -math.inf, high: float = math.inf, *, open_low: bool = False) -> Check:
    """A finite number in low..high (above `low` when `open_low`), returned as float."""
    if math.isinf(low):
        allowed = "a finite number"
    elif math.isinf(high):
        allowed = f"a finite number {'>' if open_low else '>='} {low:g}"
    else:
        allowed = f"a number in {low:g}..{high:g}"

    def check(value: object, path: str) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            fail(path, show(value), allowed)
        try:
            result = float(value)
        except OverflowError:
            fail(path, show(value), allowed)
        inside = low < result if open_low else low <= result
        if not (math.isfinite(result) and inside and result <= high):
            fail(path, show(value), allowed)
        return result

    return check


def share(value: object, path: str) -> float:
    """A number between 0 and 1, neither of them."""
    result: float = number()(value, path)
    if not 0 < result < 1:
        fail(path, show(value), "a number > 0 and < 1")
    return result


def boolean(value: object, path: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        fail(path, show(value), "true or false")
    return value


def text(value: object, path: str) -> str:
    """A non-empty string."""
    if not isinstance(value, str) or not value:
        fail(path, show(value), "a non-empty string")
    return value


def choice(*options: str) -> Check:
    """One of a few strings."""

    def check(value: object, path: str) -> str:
        if not isinstance(value, str) or value not in options:
            fail(path, show(value), names(options))
        return value

    return check


def list_of(check: Check) -> Check:
    """A list whose elements all pass `check`, returned as a tuple."""

    def check_list(value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            fail(path, show(value), "a list")
        return tuple(check(item, f"{path}[{i}]") for i, item in enumerate(value))

    return check_list


def mapping(value: object, path: str) -> Mapping[str, object]:
    """A JSON object."""
    if not isinstance(value, Mapping):
        fail(path, show(value), "an object")
    for key in value:
        if not isinstance(key, str):
            fail(path, f"the key {show(key)}", "keys that are strings")
    return value


def json_value(value: object, path: str) -> Any:
    """Any JSON value, deeply copied."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return number()(value, path)
    if isinstance(value, (list, tuple)):
        return [json_value(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {k: json_value(v, child(path, k)) for k, v in mapping(value, path).items()}
    fail(path, f"{show(value)} of type {type(value).__name__}", "a JSON value")


def given(value: object, path: str, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Parses the fields present in the object `value`; unknown ones are refused."""
    table = mapping(value, path)
    for key, item in table.items():
        if key not in fields:
            fail(child(path, key), f"an unknown field with value {show(item)}", names(fields))
    return {key: fields[key].check(item, child(path, key)) for key, item in table.items()}


def record(value: object, path: str, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Parses the object `value`: unknown fields are refused, absent ones get their default."""
    parsed = given(value, path, fields)
    for key, field in fields.items():
        if key not in parsed:
            if field.default is REQUIRED:
                fail(path, f'no field "{key}"', f"it is required, beside {names(fields)}")
            parsed[key] = field.default
    return parsed
