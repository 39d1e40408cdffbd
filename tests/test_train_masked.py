"""Training's masked forward pass: dense it is the model's own, under a policy the reference's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gate_documents import variants
from parity import LAYERS, chunks, fewer
from reference import compare
from reference import run as reference_run
from test_policy_parity import OPTIONS, PRESET_PARAMETERS, policy, score
from tiny_models import FAMILIES

from tokprune_rt.policy import ModelInfo, Policy, bind_policy, compile_plan, parse_policy, preset
from tokprune_rt.train import MaskedEncoder, PolicyChooser

CLASSES = {
    "features": transformers.AutoModel,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
}


def padded(rows: list[list[int]], pad: int = 0) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_dense_is_the_model_itself(tiny: Any, family: str, task: str) -> None:
    model = CLASSES[task].from_pretrained(tiny(family, task)).eval()
    rows = [[5, 9, 11, 7, 6], [8], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]
    inputs = padded(rows, model.config.pad_token_id)
    encoder = MaskedEncoder(model)
    with torch.inference_mode():
        expected = model(**inputs, output_hidden_states=True)
        with encoder.choosing(None):
            found, run = encoder.run({**inputs, "output_hidden_states": True})
        again = model(**inputs)
    real = inputs["attention_mask"].bool()
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)
    if task == "sequence-classification":
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    assert all(bool((kept == real).all()) for kept in run.kept)
    # Nothing of the masked encoder is left behind.
    assert torch.equal(again[0], expected[0])


DOCUMENTS: dict[str, Any] = {
    f"{name}-{i}": preset(name, layers=LAYERS, **parameters)
    for name, variants in PRESET_PARAMETERS.items()
    for i, parameters in enumerate(variants)
    if parameters.get("action") != "package" and name != "static-idf"
} | {
    name: document
    for name, document in OPTIONS.items()
    if not name.startswith("random") and document["steps"][0]["action"]["kind"] != "package"
}

# The first token leaves while others stay, and its row goes on without context.
DOCUMENTS["first-leaves"] = {
    **policy(
        {"kind": "threshold", "theta": 0.5},
        score("table", tensor="by-position", index="position"),
        layers=[1],
        dead_first="passive",
        protect={},
    ),
    "tensors": {"by-position": np.array([0.0] + [1.0] * 511, np.float32)},
}


def bound(document: Any) -> Policy:
    given = document.to_dict() if isinstance(document, Policy) else dict(document)
    tensors = given.pop("tensors", None)
    info = ModelInfo(layers=LAYERS, vocab_size=30522, max_positions=512)
    return bind_policy(parse_policy(given, tensors), info)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_decisions_are_the_reference_s(
    torch_model: Any, token_ids: list[list[int]], name: str
) -> None:
    """Who is left after every layer, and the states of those, outside ties."""
    chosen = bound(DOCUMENTS[name])
    plan = compile_plan(chosen)
    encoder = MaskedEncoder(torch_model)
    agreeing = total = 0
    for rows in chunks(fewer(token_ids, 12)):
        reference = reference_run(torch_model, rows, plan, dtype=torch.float32)
        with torch.inference_mode(), encoder.choosing(PolicyChooser(chosen)):
            output, run = encoder.run(padded(rows))
        kept = [[np.flatnonzero(row) for row in alive.numpy()] for alive in run.kept]
        states = output.last_hidden_state.numpy()
        hidden = [states[b, where] for b, where in enumerate(reference.positions)]
        found = compare(reference, kept=kept, hidden=hidden)
        assert found.mismatches == []
        assert found.hidden <= 5e-5
        agreeing += len(found.agreeing)
        total += len(rows)
    assert agreeing >= 0.98 * total


@pytest.mark.parametrize("name", [name for name in variants(64) if "package" not in name])
def test_networks_and_entropies_decide_as_the_reference(tiny: Any, name: str) -> None:
    model = transformers.AutoModel.from_pretrained(tiny("bert")).eval()
    policy = parse_policy(variants(64)[name])
    plan = compile_plan(policy)
    rng = np.random.default_rng(5)
    rows = [rng.integers(5, 60, size).tolist() for size in (3, 40, 17, 64, 29, 8, 51)]
    reference = reference_run(model, rows, plan, dtype=torch.float32)
    encoder = MaskedEncoder(model)
    with torch.inference_mode(), encoder.choosing(PolicyChooser(policy)):
        output, run = encoder.run(padded(rows))
    kept = [[np.flatnonzero(row) for row in alive.numpy()] for alive in run.kept]
    states = output.last_hidden_state.numpy()
    hidden = [states[b, where] for b, where in enumerate(reference.positions)]
    found = compare(reference, kept=kept, hidden=hidden)
    assert found.mismatches == []
    assert found.hidden <= 5e-5
    assert len(found.agreeing) >= len(rows) - 1
    assert sum(map(len, kept[-1])) < sum(map(len, rows))


def test_what_training_cannot_do_is_refused() -> None:
    package = preset("quantile", layers=LAYERS, q=0.3, action="package")
    with pytest.raises(ValueError, match="action 'package' is not available in training"):
        PolicyChooser(bound(package))
    with pytest.raises(ValueError, match="score 'random' is not available in training"):
        PolicyChooser(bound(OPTIONS["random"]))
    for name, kind in (("tome", "similarity"), ("mid-pool", "uniform")):
        with pytest.raises(ValueError, match=f"score '{kind}' is not available in training"):
            PolicyChooser(bound(preset(name, layers=LAYERS)))
    gpt = transformers.GPT2Model(
        transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)
    )
    with pytest.raises(ValueError, match="cannot prune a 'gpt2' model; supported: bert"):
        MaskedEncoder(gpt)
