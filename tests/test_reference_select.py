"""The reference's selectors and margins on hand-computed cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from reference.select import select


def kept(spec: dict, scores: list[float], protected: tuple[int, ...] = (0,)) -> list[int]:
    full = {"min_tokens": 1, "max_tokens": 0, **spec}
    values, n = np.array(scores, dtype=np.float64), len(scores)
    flags = np.isin(np.arange(n), protected)
    return np.flatnonzero(select(full, values, flags, np.arange(n), n0=12).keep).tolist()


SCORES = [0.0, 5.0, 1.0, 4.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"kind": "topk", "k": 3}, [0, 1, 3]),
        ({"kind": "topk", "k": 0}, [0]),
        ({"kind": "ratio", "ratio": 0.5, "of": "n", "round": "ceil"}, [0, 1, 3]),
        ({"kind": "ratio", "ratio": 0.3, "of": "n0", "round": "floor"}, [0, 1, 3]),
        ({"kind": "ratio", "ratio": 0.3, "of": "n0", "round": "ceil"}, [0, 1, 3, 5]),
        ({"kind": "ratio", "ratio": 0.375, "of": "n0", "round": "round"}, [0, 1, 3, 5]),
        ({"kind": "threshold", "theta": 3.0}, [0, 1, 3, 5]),
        ({"kind": "threshold_n", "eta": 24.0}, [0, 1, 3]),
        ({"kind": "threshold_rel", "t": 0.6, "of": "max"}, [0, 1, 3, 5]),
        ({"kind": "threshold_rel", "t": 1.0, "of": "mean"}, [0, 1, 3, 5]),
        ({"kind": "quantile", "q": 0.4}, [0, 1, 3, 5]),
        ({"kind": "quantile", "q": 0.39}, [0, 1, 3, 4, 5]),
        ({"kind": "top_p", "p": 0.6}, [0, 1, 3]),
        ({"kind": "top_p", "p": 0.61}, [0, 1, 3, 5]),
        ({"kind": "top_p", "p": 1.0}, [0, 1, 2, 3, 4, 5]),
        # Ranks of positions 1 3 5 4 2 are 0..4; 3 bins over 5 tokens: 0 0 1 1 2.
        ({"kind": "rank_bins", "bits": [1, 0, 1], "bin_rule": "int"}, [0, 1, 2, 3]),
        ({"kind": "rank_bins", "bits": [0, 1, 0], "bin_rule": "int"}, [0, 4, 5]),
        ({"kind": "threshold", "theta": 9.0, "min_tokens": 3}, [0, 1, 3]),
        ({"kind": "threshold", "theta": 0.5, "max_tokens": 2}, [0, 1]),
        (
            {"kind": "rank_bins", "bits": [0, 1, 0], "bin_rule": "int", "min_tokens": 4},
            [0, 1, 4, 5],
        ),
    ],
)
def test_selectors(spec: dict[str, Any], expected: list[int]) -> None:
    assert kept(spec, SCORES) == expected


def test_float32_bin_rule() -> None:
    def both(u: int, bits: list[int]) -> list[list[int]]:
        spec = {"kind": "rank_bins", "bits": bits}
        return [kept(spec | {"bin_rule": rule}, [*range(u)], ()) for rule in ("int", "float32")]

    # Rank 1 of 2: 1 * 2 // 2 is bin 1, but 1 / 2.000001 * 2 truncates to bin 0.
    assert both(2, [1, 0]) == [[1], [0, 1]]
    # 32 + 1e-6 is 32 in float32, so the rules agree.
    assert both(32, [0, 1]) == [list(range(16))] * 2


def test_margins() -> None:
    def margin(spec: dict, scores: list[float], **kwargs: Any) -> float:
        full = {"min_tokens": 1, "max_tokens": 0, **spec}
        values, n = np.array(scores), len(scores)
        flags = np.arange(n) == 0
        return select(full, values, flags, np.arange(n), n, **kwargs).margin

    theta = {"kind": "threshold", "theta": 2.0}
    assert margin(theta, [2.0, 2.5, 1.9]) == pytest.approx(0.05)
    assert margin(theta, [2.0]) == math.inf
    assert margin({"kind": "topk", "k": 2}, [9.0, 4.0, 3.0, 2.9]) == pytest.approx(0.25)
    assert margin({"kind": "topk", "k": 9}, [9.0, 4.0, 4.0]) == math.inf
    assert margin({"kind": "topk", "k": 2}, [9.0, 4.0, 4.0]) == 0
    assert margin({"kind": "topk", "k": 2}, [9.0, 4.0, 4.0], noise_free=True) == math.inf
    assert margin({"kind": "top_p", "p": 0.5}, [9.0, 5.0, 3.0, 2.0]) == 0
    capped = {"kind": "threshold", "theta": 1.0, "max_tokens": 2}
    assert margin(capped, [9.0, 4.0, 3.96]) == pytest.approx(0.01)
