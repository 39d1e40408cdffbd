"""Gates and predicted ratios: networks on states decide. Parity with the reference, and cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gates
import numpy as np
import pytest
import random_model as rm
import torch
from engine_calls import LEVELS, SLACK, batch, encoder
from gate_documents import document, variants
from kernel_memory import assert_same_bits
from parity import LAYERS, Tolerance, check, fewer, forward, plan_of
from reference import compare_output, run
from tiny_models import FAMILIES
from transformers import AutoModel

import tokprune_rt
from tokprune_rt import _core
from tokprune_rt.policy import (
    compile_plan,
    parse_policy,
    preset,
)

WIDTH = 384
# A logit adds the errors of a whole state, so decisions are closer to their band than those on
# column sums: margins count relative to the mean size of the logits.
LOGITS = Tolerance(band=1e-4 * SLACK, agreeing=0.95)


def networks(count: int, outputs: int, hidden: int, lift: float) -> list[gates.Perceptron]:
    """Random gates for all-MiniLM-L6-v2 that keep more or less, by ``lift``."""
    found = gates.perceptrons(count, WIDTH, hidden, outputs)
    for network in found:
        network["output.bias"][-1] += lift
    return found


PRESETS: dict[str, dict[str, Any]] = {
    "transkimmer": {"gates": networks(LAYERS - 1, 2, WIDTH, 0.6)},
    "transkimmer drop everywhere": {"gates": networks(LAYERS, 2, 40, 0.6), "action": "drop"},
    "adapler": {"gates": networks(LAYERS, 1, 32, 0.0), "eta": [0.3, 0.3, 0.4, 0.4, 0.5, 0.5]},
    "adapler package": {"gates": networks(2, 1, 32, 0.0), "eta": 0.6, "action": "package"},
    "tr-bert": {"gates": networks(2, 1, 48, 0.2), "activation": "gelu_new"},
    "ad-tp": {
        "gate": gates.perceptron(WIDTH, 24, 1),
        "predictor": gates.perceptron(WIDTH, 60, 3, 2),
        "ratios": [0.4, 0.6, 0.8],
    },
    "tr-bert pair": {"gates": networks(2, 2, 48, 0.2), "activation": "relu", "action": "restore"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(minilm: Any, torch_model: Any, token_ids: list[list[int]], name: str) -> None:
    plan = plan_of(preset(name.split()[0], layers=LAYERS, **PRESETS[name]))
    some = fewer(token_ids, 10)
    share = check(minilm.engine.encoder, torch_model, some, plan, LOGITS)
    assert 0.02 < share < 0.9


def ids_of(vocabulary: int, count: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, vocabulary, n).tolist() for n in (1, 2, 60, *range(5, 5 + count))]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_equal_the_float64_reference(tiny: Callable[..., Path], family: str) -> None:
    folder = tiny(family)
    loaded = tokprune_rt.load(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    width = model.config.hidden_size
    ids = ids_of(model.config.vocab_size)
    for name, policy in variants(width).items():
        plan = compile_plan(parse_policy(policy))
        reference = run(model, ids, plan, dtype=torch.float64)
        result = compare_output(reference, forward(loaded.engine.encoder, ids, plan), 1e-4 * SLACK)
        assert result.mismatches == [], f"{family} {name}"
        assert len(result.agreeing) >= len(ids) - 1, f"{family} {name}"
        assert result.hidden <= 1e-4 * SLACK and result.scores <= 1e-3, f"{family} {name}"
        assert sum(map(len, reference.kept[-1])) < sum(map(len, ids)), f"{name} prunes nothing"


@pytest.mark.parametrize("level", LEVELS)
def test_macs_count_the_rows_that_a_gate_reads(level: str) -> None:
    """Only sequences that the step may prune are read."""
    engine = encoder("first", level)
    sequences = batch("first", [40, 7, 33], seed=2)
    dense = rm.forward(engine, sequences)
    keep = {"kind": "gate", "threshold": -1e30}
    gate = rm.gate(48, 2)
    for skip, rows in ((0, 80), (8, 73), (99, 0)):
        steps = [rm.step(layer, "pre", "drop", **keep) for layer in (0, 2)]
        out = rm.forward(engine, sequences, plan=_core.Plan(rm.plan(gate, steps, skip_below=skip)))
        assert out["macs"] - dense["macs"] == 2 * rows * (48 * 21 + 21 * 2)
        assert_same_bits(out["hidden"], dense["hidden"])


def test_macs_of_a_predictor() -> None:
    """One row for each sequence that the step may prune."""
    sequences = batch("first", [40, 7, 33], seed=2)
    engine = encoder("first", LEVELS[-1])
    dense = rm.forward(engine, sequences)
    choice = rm.predictor(48, (1.0, 0.5))
    choice["output.bias"][:] = [1e6, 0]  # all stay
    step = rm.step(1, "pre", "drop", "predicted_ratio", **choice)
    out = rm.forward(engine, sequences, plan=_core.Plan(rm.plan(rm.score("random"), [step])))
    assert out["macs"] - dense["macs"] == 3 * (48 * 70 + 70 * 2)
    assert_same_bits(out["hidden"], dense["hidden"])


def test_a_predictor_chooses_the_ratio() -> None:
    """Each ratio in turn, the first of equal outputs, rounded up with protected tokens counted."""
    sequences = batch("first", [40, 7, 33, 1], seed=2)
    engine = encoder("first", LEVELS[-1])
    for biases, share in (
        ([1e6, 0, 0], 0.9),
        ([0, 1e6, 0], 0.11),
        ([0, 0, 1e6], 0.5),
        ([0, 1e6, 1e6], 0.11),
    ):
        choice = rm.predictor(48, (0.9, 0.11, 0.5))
        choice["output.weight"][:] = 0
        choice["output.bias"][:] = biases
        step = rm.step(1, "post", "drop", "predicted_ratio", **choice)
        plan = _core.Plan(rm.plan(rm.score("random"), [step], protect={"last": True}))
        kept = rm.forward(engine, sequences, plan=plan)["kept"][1].tolist()
        wanted = [max(int(np.ceil(share * len(item) - 1e-9)), 2) for item in sequences[:3]]
        assert kept == [*wanted, 1]


@pytest.mark.parametrize("level", LEVELS)
def test_scores_are_float32_in_every_precision(level: str) -> None:
    """Before the first layer no product is rounded, so the scores are the same bits."""
    gate = rm.gate(48, 2)
    plan = _core.Plan(rm.plan(gate, [rm.step(0, "pre", "drop", "topk", k=5)]))
    sequences = batch("first", [40, 3, 17], seed=5)
    scores = [
        rm.forward(encoder("first", level, 1, name), sequences, plan=plan, trace=True)
        for name in ("fp32", "bf16", "int8")
    ]
    for other in scores[1:]:
        for ours, theirs in zip(
            scores[0]["trace_scores"][0], other["trace_scores"][0], strict=True
        ):
            assert_same_bits(ours, theirs)


def test_argmax_keeps_ties() -> None:
    gate = rm.gate(48, 2)
    for network in gate["layers"].values():
        network["output.weight"][1] = network["output.weight"][0]
        network["output.bias"][:] = 3.0
    sequences = batch("first", [40, 3], seed=5)
    for threshold, kept in ((0.0, [40, 3]), (1e-6, [1, 1])):
        plan = rm.plan(gate, [rm.step(1, "pre", "drop", "gate", threshold=threshold)])
        out = rm.forward(encoder("first", LEVELS[-1]), sequences, plan=_core.Plan(plan))
        assert out["kept"][1].tolist() == kept


def test_profiles_and_off(tiny: Callable[..., Path]) -> None:
    folder = tiny("bert")
    width = tokprune_rt.load(folder).config.hidden
    policy = document(width, "pre", [1, 2], {"kind": "gate", "t": 0.5})
    policy["profiles"] = {"all": {"steps": [{"t": 1e-300}]}, "none": {"steps": [{"t": 1 - 1e-16}]}}
    model = tokprune_rt.load(folder, policy=policy)
    dense = tokprune_rt.load(folder, policy="off")
    ids = ids_of(60)
    expected = dense.forward(ids)
    for profile in ("off", "all"):
        found = model.forward(ids, profile=profile)
        for ours, theirs in zip(found.hidden, expected.hidden, strict=True):
            assert_same_bits(ours, theirs)
    assert model.forward(ids, profile="off").stats.macs == expected.stats.macs
    assert all(len(rows) == 1 for rows in model.forward(ids, profile="none").positions)
    assert (
        tokprune_rt.load(tokprune_rt.export(folder, folder.parent / "gated", policy=policy)).policy
        == model.policy
    )
