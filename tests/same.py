"""Whether two results are the same kind of thing, and nearly the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine_calls import SLACK

TOLERANCE = 2e-5


def same(found: Any, expected: Any) -> None:
    """The same type, shape, dtype, order and, within `TOLERANCE`, values."""
    import torch

    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            same(a, b)
    elif isinstance(expected, np.ndarray | np.generic | torch.Tensor):
        assert type(found) is type(expected)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        a, b = np.asarray(found), np.asarray(expected)
        # A value at the edge of a bucket may fall into either.
        exact = b.dtype.kind in "iub"
        np.testing.assert_allclose(
            a.astype(float), b.astype(float), rtol=0, atol=1 if exact else TOLERANCE * SLACK
        )
    elif isinstance(expected, float):
        assert isinstance(found, float)
        assert found == pytest.approx(expected, abs=TOLERANCE * SLACK)
    else:
        assert type(found) is type(expected)
        assert found == expected


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the class of error it raises."""
    try:
        return call()
    except Exception as err:
        return type(err)


def same_outcome(found: Callable[[], Any], expected: Callable[[], Any]) -> None:
    """`same`, or an error of the same class or a narrower one."""
    ours, theirs = outcome(found), outcome(expected)
    if isinstance(theirs, type):
        assert isinstance(ours, type), f"returned {type(ours)} where {theirs} is due"
        assert issubclass(ours, theirs)
    else:
        assert not isinstance(ours, type), f"{ours} where a result is due"
        same(ours, theirs)
