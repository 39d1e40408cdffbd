"""Merging and pooling in the engine, against the masked float64 reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_calls import SLACK
from merge_plans import plans
from reference import POOLING_MODES, ReferenceResult, compare_output, run
from transformers import AutoModel

from tokprune_rt import _core
from tokprune_rt.loader import load_model

PLANS = plans()
SIZES = (1, 2, 3, 4, 60, 33, *range(5, 14), 45, 24, 51, 18)
BAND = 1e-5 * SLACK


@functools.cache
def batch(vocabulary: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Ids, segments and a mask of protected tokens."""
    rng = np.random.default_rng(3)
    ids = [rng.integers(5, vocabulary, n).tolist() for n in SIZES]
    segments = [(np.arange(n) >= rng.integers(0, n // 2 + 1)).astype(int).tolist() for n in SIZES]
    mask = [(rng.random(n) < 0.05).astype(int).tolist() for n in SIZES]
    return ids, segments, mask


class Pair:
    """The engine and the reference on one model."""

    def __init__(self, folder: Path, masked: bool) -> None:
        loaded = load_model(folder)
        config = loaded.core_config | {"pooling": list(POOLING_MODES)}
        self.engine = _core.Encoder(config, loaded.weights, 2, "", "fp32")
        model = AutoModel.from_pretrained(folder, attn_implementation="eager")
        self.model = model.double().eval()
        self.ids, self.segments, mask = batch(model.config.vocab_size)
        self.mask = mask if masked else None

    def reference(self, plan: dict[str, Any]) -> ReferenceResult:
        return run(
            self.model,
            self.ids,
            plan,
            segment_ids=self.segments,
            protect=self.mask,
            pooling=POOLING_MODES,
        )

    def forward(self, plan: dict[str, Any]) -> dict[str, Any]:
        def flat(rows: Any, kind: Any = np.int32) -> np.ndarray:
            return np.concatenate([np.asarray(row, kind) for row in rows])

        return self.engine.forward(
            flat(self.ids),
            np.cumsum([0, *SIZES]).astype(np.int32),
            segment_ids=flat(self.segments),
            protect=None if self.mask is None else flat(self.mask, np.uint8),
            plan=_core.Plan(plan),
            trace=True,
        )


@pytest.fixture(scope="module", params=["bert", "mpnet", "distilbert"])
def pair(request: Any, tiny: Callable[..., Path]) -> Iterator[Pair]:
    """With positions in the embeddings, in the attention, and with some tokens protected."""
    torch.set_num_threads(1)
    yield Pair(tiny(request.param), masked=request.param == "distilbert")


@pytest.mark.parametrize("name", PLANS)
def test_plans_equal_the_reference(pair: Pair, name: str) -> None:
    plan = PLANS[name]
    expected = pair.reference(plan)
    found = compare_output(expected, pair.forward(plan), BAND)
    assert found.mismatches == []
    assert len(found.agreeing) >= len(SIZES) - 3
    assert found.hidden <= 1e-4 * SLACK and found.pooled <= 1e-4 * SLACK
    assert found.scores <= 1e-4 * SLACK
    assert sum(map(len, expected.kept[-1])) < 0.9 * sum(SIZES), "nothing merged tests nothing"
    assert max(sizes.max() for sizes in expected.sizes) >= 2
