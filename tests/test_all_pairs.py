"""Which rows join which by the selector `all_pairs`: the loop that runtime and training share."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from merge_plans import all_pairs
from reference.merging import group

from tokprune_rt import _core


def groups_of(host: np.ndarray) -> list[list[int]]:
    found = {}
    for i, at in enumerate(host.tolist()):
        if at >= 0:
            found.setdefault(at, [at]).append(i)
    return sorted(sorted(members) for members in found.values())


@given(
    n=st.integers(2, 24),
    values=st.sampled_from([2, 4, 1000]),
    seed=st.integers(0, 999),
    ratio=st.floats(0.05, 1.0),
)
@settings(deadline=None, max_examples=300)
def test_the_reference_joins_the_same_rows(n: int, values: int, seed: int, ratio: float) -> None:
    """Of few values nearly all is a tie."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.integers(-values, values, (n, n)), 1).astype(np.float32) / values
    similarity = upper + upper.T
    protected = rng.random(n) < 0.2
    free = np.flatnonzero(~protected)
    expected = group(all_pairs(ratio), similarity.astype(np.float64), protected, n)
    joins = n - math.ceil(ratio * n - 1e-9)
    among = np.ascontiguousarray(similarity[np.ix_(free, free)])
    found = groups_of(_core.join_rows(among, joins, joins, 0.0))
    assert [free[members].tolist() for members in found] == [g.tolist() for g in expected.groups]
    # Above a similarity, as far as that goes, and at least so many.
    least = joins // 2
    spec = all_pairs(theta=0.5, max_tokens=n - least) if least else all_pairs(theta=0.5)
    expected = group(spec, similarity.astype(np.float64), protected, n)
    found = groups_of(_core.join_rows(among, least, n - 1, 0.5))
    assert [free[members].tolist() for members in found] == [g.tolist() for g in expected.groups]


def test_what_is_no_number_is_no_pair() -> None:
    similarity = np.full((5, 5), np.nan, np.float32)
    assert _core.join_rows(similarity, 4, 4, 0.0).tolist() == [-1] * 5
    similarity[1, 3] = -math.inf
    assert _core.join_rows(similarity, 4, 4, 0.0).tolist() == [-1] * 5
    similarity[0, 4], similarity[2, 3] = -0.5, 0.5
    assert _core.join_rows(similarity, 4, 4, 0.0).tolist() == [-1, -1, -1, 2, 0]
    assert _core.join_rows(similarity, 0, 4, 0.0).tolist() == [-1, -1, -1, 2, -1]


def test_matrices_that_are_none() -> None:
    assert _core.join_rows(np.zeros((0, 0), np.float32), 3, 3, 0.0).tolist() == []
    with pytest.raises(ValueError, match="square"):
        _core.join_rows(np.zeros((2, 3), np.float32), 1, 1, 0.0)
    with pytest.raises(TypeError):
        _core.join_rows(np.zeros((2, 2)), 1, 1, 0.0)  # type: ignore[arg-type]
