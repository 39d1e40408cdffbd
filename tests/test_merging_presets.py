"""Presets that merge or pool, on real weights and from the policy to the embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_calls import SLACK
from kernel_memory import assert_same_bits
from parity import LAYERS, Tolerance, check, fewer, plan_of
from reference import run
from transformers import AutoModel

import tokprune_rt
from tokprune_rt.policy import preset

# Of a hundred similarities, some lie close together: more ties than among importances.
MERGING = Tolerance(agreeing=0.9)
ENERGIES = Tolerance(agreeing=0.7 if SLACK == 1 else 0.4)

PRESETS: dict[str, tuple[str, dict[str, Any], Tolerance]] = {
    "tome": ("tome", {}, MERGING),
    "tome hidden": ("tome", {"metric": "hidden", "ratio": [0.9, 0.8, 0.7]}, MERGING),
    "pitome": ("pitome", {}, ENERGIES),
    "pitome hidden": ("pitome", {"metric": "hidden", "margin": 0.0}, ENERGIES),
    "ltmp": ("ltmp", {}, MERGING),
    "ltmp trained": ("ltmp", {"merge_theta": 0.7, "theta": 0.01}, MERGING),
    "mid-pool": ("mid-pool", {}, Tolerance()),
    "mid-pool ratio": ("mid-pool", {"ratio": 0.4, "layer": 2}, Tolerance()),
    "jasper-pool": ("jasper-pool", {"protect_last": True}, Tolerance()),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(minilm: Any, torch_model: Any, token_ids: list[list[int]], name: str) -> None:
    kind, parameters, tolerance = PRESETS[name]
    plan = plan_of(preset(kind, layers=LAYERS, **parameters))
    some = [ids for ids in fewer(token_ids, 10) if len(ids) < 120]
    share = check(minilm.engine.encoder, torch_model, some, plan, tolerance)
    assert 0.2 < share < 0.95


def documents() -> dict[str, dict[str, Any]]:
    return {
        "tome": preset("tome", layers=3, ratio=0.7),
        "pitome": preset("pitome", layers=3, ratio=0.8),
        "ltmp": preset("ltmp", layers=3, merge_theta=0.3, theta=0.01),
        "mid-pool": preset("mid-pool", layers=3, stride=3),
        "jasper-pool": preset("jasper-pool", layers=3, ratio=0.6),
    }


IDS = [[2, *range(5, 45), 3], [2, 7, 3], [2], [2, *range(30, 50), 3]]


@pytest.mark.parametrize("name", documents())
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_profile_off_is_dense(tiny: Callable[..., Path], name: str, precision: str) -> None:
    folder = tiny("bert")
    dense = tokprune_rt.load(folder, policy="off", precision=precision)
    merging = tokprune_rt.load(folder, policy=documents()[name], precision=precision)
    expected = dense.forward(IDS)
    merged = merging.forward(IDS)
    off = merging.forward(IDS, profile="off")
    assert off.stats.macs == expected.stats.macs > merged.stats.macs
    assert_same_bits(off.pooled, expected.pooled)
    for actual, wanted in zip(off.hidden, expected.hidden, strict=True):
        assert_same_bits(actual, wanted)
    assert len(merged.positions[0]) < len(IDS[0])


@pytest.mark.parametrize("name", documents())
def test_embeddings_are_means_over_sizes(tiny: Callable[..., Path], name: str) -> None:
    """From the policy to the pooled vector; without an output of its own a policy means sizes."""
    folder = tiny("mpnet")
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    for over in (None, "size", "kept"):
        document = documents()[name]
        if over:
            document["output"] = {"kind": "mean", "over": over}
        found = tokprune_rt.load(folder, policy=document, precision="fp32").forward(IDS)
        reference = run(model, IDS, plan_of(document, layers=3))
        assert min(map(min, reference.unseen)) > 1e-5
        for actual, wanted in zip(found.positions, reference.positions, strict=True):
            np.testing.assert_array_equal(actual, wanted)
        expected = reference.pool(["mean"], over=over or "size")
        np.testing.assert_allclose(found.pooled, expected, rtol=0, atol=1e-4)
        other = reference.pool(["mean"], over="size" if over == "kept" else "kept")
        assert np.abs(other - expected).max() > 1e-3
