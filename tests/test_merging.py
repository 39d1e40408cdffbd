"""Merging and pooling in the engine, against the masked float64 reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gates
import numpy as np
import pytest
import torch
from engine_calls import LEVELS, has_tiles
from merge_plans import (
    COLUMN,
    HIDDEN,
    KEYS,
    UNIFORM,
    WEIGHED,
    all_pairs,
    bipartite,
    drop,
    energy_pairs,
    merge,
    plan,
    plans,
    pool,
    pooling,
)
from reference import POOLING_MODES, ReferenceResult, compare_output, run
from transformers import AutoModel

from tokprune_rt import _core
from tokprune_rt.loader import load_model

PLANS = plans()
SIZES = (1, 2, 3, 4, 60, 33, *range(5, 14), 45, 24, 51, 18)
# How many times the tolerances, and how many sequences may lie in the band of ties, by precision.
PRECISIONS = {"fp32": (1, 3)} | ({"bf16x3": (8, 10)} if has_tiles(LEVELS[-1]) else {})


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
        self.engines = {
            precision: _core.Encoder(config, loaded.weights, 2, "", precision)
            for precision in PRECISIONS
        }
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

    def forward(self, precision: str, plan: dict[str, Any]) -> dict[str, Any]:
        def flat(rows: Any, kind: Any = np.int32) -> np.ndarray:
            return np.concatenate([np.asarray(row, kind) for row in rows])

        return self.engines[precision].forward(
            flat(self.ids),
            np.cumsum([0, *SIZES]).astype(np.int32),
            segment_ids=flat(self.segments),
            protect=None if self.mask is None else flat(self.mask, np.uint8),
            plan=_core.Plan(plan),
            trace=True,
        )

    def check(self, plan: dict[str, Any], band: float = 1e-5) -> None:
        expected = self.reference(plan)
        assert sum(map(len, expected.kept[-1])) < 0.9 * sum(SIZES), "nothing merged tests nothing"
        assert max(sizes.max() for sizes in expected.sizes) >= 2
        for precision, (slack, ties) in PRECISIONS.items():
            output = self.forward(precision, plan)
            found = compare_output(expected, output, band * slack)
            assert found.mismatches == [], precision
            assert len(found.ties) <= ties, precision
            assert max(found.hidden, found.pooled, found.scores) <= 1e-4 * slack, precision
            if not found.ties:
                check_rows(expected, output["trace_rows"])


def check_rows(expected: ReferenceResult, layers: list[list[np.ndarray]]) -> None:
    """Which token is in whose row, against how many tokens each row of the reference stands for."""
    for s, (kept, sizes) in enumerate(zip(expected.kept[-1], expected.sizes, strict=True)):
        last = layers[-1][s]
        count = np.bincount(last[last >= 0], minlength=SIZES[s])
        assert np.flatnonzero(count).tolist() == sorted(kept)
        np.testing.assert_array_equal(count[list(kept)], sizes)
        assert all(last[row] == row for row in kept)
        for before, after in pairwise(layer[s] for layer in layers):
            # Tokens that share a row stay together.
            held = before >= 0
            np.testing.assert_array_equal(after[held], after[before[held]])
            assert (after[~held] == -1).all()


@pytest.fixture(scope="module", params=["bert", "mpnet", "distilbert"])
def pair(request: Any, tiny: Callable[..., Path]) -> Iterator[Pair]:
    """With positions in the embeddings, in the attention, and with some tokens protected."""
    torch.set_num_threads(1)
    yield Pair(tiny(request.param), masked=request.param == "distilbert")


@pytest.mark.parametrize("name", PLANS)
def test_plans_equal_the_reference(pair: Pair, name: str) -> None:
    pair.check(PLANS[name])


def gate(layers: range, width: int) -> dict[str, Any]:
    networks = {i: gates.perceptron(width, 19, 1, i) for i in layers}
    return {"kind": "gate", "activation": "gelu", "softmax": False, "layers": networks}


def test_gates_read_merged_states(pair: Pair) -> None:
    """Also where the states are made for the gate before the step that merges at the boundary."""
    scored = gate(range(3), pair.model.config.hidden_size)
    for steps in (
        [
            merge(0, "mid", KEYS, bipartite(0.7)),
            drop(0, "post", 0.7, scored),
            merge(1, "mid", HIDDEN, bipartite(0.7)),
            drop(2, "pre", 0.7, scored),
        ],
        [
            pool(0, "embed", pooling(0.8)),
            drop(0, "pre", 0.8, scored),
            merge(1, "post", HIDDEN, energy_pairs(0.7, 0.1)),
            drop(2, "pre", 0.7, scored),
            merge(2, "pre", HIDDEN, bipartite(0.8)),
        ],
    ):
        pair.check(plan(*steps), band=1e-4)


# Plans that are refused

MERGE = merge(1, "mid", HIDDEN, bipartite(0.5))
POOL = pool(1, "mid", pooling(0.5))
RESTORE = drop(2, "mid", 0.5) | {"action": "restore"}


def without(step: dict[str, Any], key: str) -> dict[str, Any]:
    return step | {"select": {k: v for k, v in step["select"].items() if k != key}}


def select(step: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return step | {"select": step["select"] | changes}


BAD: dict[str, dict[str, Any]] = {
    "drop by similarity": plan(MERGE | {"action": "drop"}),
    "package by similarity": plan(MERGE | {"action": "package"}),
    "drop by groups": plan(POOL | {"action": "drop"}),
    "merge by groups": plan(POOL | {"action": "merge"}),
    "pool by similarity": plan(MERGE | {"action": "pool"}),
    "bipartite by column sums": plan(MERGE | {"score": COLUMN}),
    "pairs by column sums": plan(merge(1, "mid", COLUMN, all_pairs(0.5))),
    "all pairs by ratio and theta": plan(merge(1, "mid", HIDDEN, all_pairs(0.5, 0.5))),
    "energies weighed by attention": plan(merge(1, "mid", WEIGHED, energy_pairs(0.5, 0.1))),
    "energies by column sums": plan(merge(1, "mid", COLUMN, energy_pairs(0.5, 0.1))),
    "groups by column sums": plan(POOL | {"score": COLUMN}),
    "uniform drop": plan(drop(1, "mid", 0.5, UNIFORM)),
    "similarity as an importance": plan(drop(1, "mid", 0.5, HIDDEN)),
    "ratio and theta": plan(select(MERGE, theta=0.5)),
    "neither ratio nor theta": plan(select(MERGE, ratio=None)),
    "ratio and stride": plan(select(POOL, stride=2)),
    "neither ratio nor stride": plan(select(POOL, ratio=None)),
    "stride of one": plan(select(POOL, ratio=None, stride=1)),
    "negative stride": plan(select(POOL, ratio=None, stride=-2)),
    "no margin": plan(without(merge(1, "mid", KEYS, energy_pairs(0.5, 0.1)), "margin")),
    "no alpha": plan(without(merge(1, "mid", KEYS, energy_pairs(0.5, 0.1)), "alpha")),
    "no ratio": plan(select(merge(1, "mid", KEYS, energy_pairs(0.5, 0.1)), ratio=None)),
    "unknown states": plan(MERGE | {"score": HIDDEN | {"of": "values"}}),
    "nothing to compare": plan(MERGE | {"score": {"kind": "similarity"}}),
    "keys before the layer": plan(merge(1, "pre", KEYS, bipartite(0.5))),
    "keys after the layer": plan(merge(1, "post", KEYS, bipartite(0.5))),
    "keys after merging": plan(MERGE, merge(1, "mid", KEYS, bipartite(0.5))),
    "keys after a drop": plan(drop(1, "mid", 0.5), merge(1, "mid", KEYS, bipartite(0.5))),
    "merge and restore": plan(MERGE, RESTORE),
    "pool and restore": plan(POOL, RESTORE),
    "passive": plan(POOL, dead_first=True, protect={"first": False}),
    "no token left": plan(select(MERGE, min_tokens=0)),
    "over restored tokens": plan(POOL, over="restored"),
    "restored tokens": plan(MERGE, output={"kind": "tokens", "over": "kept"}),
    "unknown action": plan(MERGE | {"action": "join"}),
    "text for a bias": plan(MERGE, log_size="yes"),  # type: ignore[arg-type]
    "text for a ratio": plan(select(MERGE, ratio="half")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_plans_are_refused(name: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        _core.Plan(BAD[name])


def test_merge_and_package_are_refused() -> None:
    package = drop(2, "mid", 0.5) | {"action": "package"}
    for step in (MERGE, POOL):
        with pytest.raises(ValueError, match="package"):
            _core.Plan(plan(step, package))
