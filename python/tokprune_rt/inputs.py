"""Checks of what callers hand to `Model`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.tokenizer import TextOrPair, Tokens, check_text


def text_list(texts: object, name: str) -> list[str]:
    """A collection of texts as a list; TypeError naming the index and type of what is no text."""
    # A set has no order that the rows of the result could follow.
    if isinstance(texts, bytes | Mapping | Set) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a str or a list of str, got {type(texts).__name__}")
    return [check_text(text, f"{name}[{index}]") for index, text in enumerate(texts)]


def text_or_pair(value: object, where: str) -> TextOrPair:
    """A text, a pair as a tuple or list of two texts, or ``{"text": .., "text_pair": ..}``."""
    if isinstance(value, Mapping):
        unknown = set(value) - {"text", "text_pair"}
        if unknown or "text" not in value:
            raise ValueError(
                f'{where} must have the keys "text" and optionally "text_pair", found '
                f"{sorted(value)}"
            )
        first = check_text(value["text"], f'{where}["text"]')
        if value.get("text_pair") is None:
            return first
        return first, check_text(value["text_pair"], f'{where}["text_pair"]')
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{where} must be a pair of two texts, got {len(value)} items")
        return check_text(value[0], f"{where}[0]"), check_text(value[1], f"{where}[1]")
    if not isinstance(value, str):
        raise TypeError(f"{where} must be a str or a pair of str, got {type(value).__name__}")
    return check_text(value, where)


def texts_or_pairs(values: object, name: str) -> tuple[list[TextOrPair], bool]:
    """Texts or pairs as a list, and whether a single one was given.

    A tuple of two texts is one pair; a list of two texts is two texts.
    """
    single = isinstance(values, str | Mapping) or (
        isinstance(values, tuple) and len(values) == 2 and all(isinstance(v, str) for v in values)
    )
    if single:
        return [text_or_pair(values, name)], True
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be texts or pairs of texts, got {type(values).__name__}")
    return [text_or_pair(v, f"{name}[{i}]") for i, v in enumerate(values)], False


def _integers(value: Any, where: str, *, bools: bool = False) -> NDArray[np.int64]:
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise TypeError(f"{where} must be a sequence of int, got {type(value).__name__}")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as err:
        raise TypeError(f"{where} must be a flat sequence of int ({err})") from err
    if array.ndim != 1:
        raise TypeError(f"{where} must be a flat sequence of int, got {array.ndim} dimensions")
    if array.size == 0:
        raise ValueError(f"{where} is empty; every sequence needs at least one token")
    if bools and array.dtype == np.bool_:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        # numpy makes objects or floats of integers that are too large for it; an array of objects
        # may hold any.
        if all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in value):
            try:
                return np.asarray(value, dtype=np.int64)
            except OverflowError as err:
                message = f"{where} holds an integer that does not fit into 64 bits"
                raise ValueError(message) from err
        allowed = "integers or bools" if bools else "integers"
        raise TypeError(f"{where} must hold {allowed}, got {array.dtype}")
    if array.dtype == np.uint64:
        # Values beyond int64 would wrap and might pass the range check.
        array = np.minimum(array, np.uint64(2**63 - 1))
    return array.astype(np.int64)


def _check_range(array: NDArray[np.int64], where: str, what: str, limit: int) -> None:
    bad = np.flatnonzero((array < 0) | (array >= limit))
    if bad.size:
        place = int(bad[0])
        raise ValueError(
            f"{where}[{place}] is {array[place]}, allowed are 0 to {limit - 1} ({what})"
        )


def _sequences(values: Any, name: str, *, bools: bool = False) -> list[NDArray[np.int64]]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a list of int sequences, got {type(values).__name__}")
    if len(values) and isinstance(values[0], int | np.integer):
        raise TypeError(
            f"{name} must be a list of int sequences, got a list of int; put a single sequence "
            "into a list"
        )
    return [_integers(row, f"{name}[{index}]", bools=bools) for index, row in enumerate(values)]


def _aligned(
    values: Any,
    name: str,
    ids: Sequence[NDArray[np.int64]],
    limit: int,
    what: str,
    *,
    bools: bool = False,
) -> list[NDArray[np.int64]]:
    found = _sequences(values, name, bools=bools)
    if len(found) != len(ids):
        raise ValueError(f"{name} has {len(found)} sequences, input_ids has {len(ids)}")
    for index, (array, sequence) in enumerate(zip(found, ids, strict=True)):
        if len(array) != len(sequence):
            raise ValueError(
                f"{name}[{index}] has {len(array)} entries, input_ids[{index}] has {len(sequence)}"
            )
        _check_range(array, f"{name}[{index}]", what, limit)
    return found


def token_sequences(
    input_ids: Any,
    token_type_ids: Any,
    segment_ids: Any,
    *,
    vocab_size: int,
    type_vocab_size: int,
    max_positions: int,
) -> list[Tokens]:
    """Check sequences of token ids.

    Raises TypeError for what is no list of int sequences, ValueError for empty or over-long
    sequences, ids outside the vocabulary and arrays that do not match; the message names sequence
    and position.
    """
    ids = _sequences(input_ids, "input_ids")
    for index, array in enumerate(ids):
        if len(array) > max_positions:
            raise ValueError(
                f"input_ids[{index}] has {len(array)} tokens, the model takes {max_positions}"
            )
        _check_range(array, f"input_ids[{index}]", "the vocabulary", vocab_size)
    zeros = [np.zeros(len(array), dtype=np.int32) for array in ids]
    types, segments = zeros, zeros
    if token_type_ids is not None:
        limit = max(type_vocab_size, 1)
        wide = _aligned(token_type_ids, "token_type_ids", ids, limit, "the model's token types")
        types = segments = [array.astype(np.int32) for array in wide]
    if segment_ids is not None:
        wide = _aligned(segment_ids, "segment_ids", ids, 2**31, "segment numbers")
        segments = [array.astype(np.int32) for array in wide]
    return [
        Tokens(array.astype(np.int32), kinds, parts)
        for array, kinds, parts in zip(ids, types, segments, strict=True)
    ]


def protect_mask(protect: Any, sequences: Sequence[Tokens]) -> NDArray[np.uint8] | None:
    """A per-token mask of tokens that must stay, one sequence of 0/1 or bool per input sequence.

    Raises TypeError and ValueError as `token_sequences`.
    """
    if protect is None:
        return None
    ids = [item.ids.astype(np.int64) for item in sequences]
    found = _aligned(protect, "protect", ids, 2, "no or yes", bools=True)
    return np.concatenate(found).astype(np.uint8) if found else None
