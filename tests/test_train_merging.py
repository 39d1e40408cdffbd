"""Training's merging forward pass: the runtime's rows, states and vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_train_masked import padded
from tiny_models import FAMILIES

import tokprune_rt
from tokprune_rt.policy import parse_policy, preset
from tokprune_rt.train.merging import MergingEncoder, Reducer

SIMILAR = {"kind": "similarity", "of": "hidden"}
KEYS = {"kind": "similarity", "of": "keys"}
WEIGHED = {**SIMILAR, "attention": 0.2}
MERGE, DROP = {"kind": "merge"}, {"kind": "drop"}


def policy(*steps: dict[str, Any], layers: int, **fields: Any) -> dict[str, Any]:
    """Steps whose scores are given in place; the first token and its last stay."""
    scores: dict[str, Any] = {}
    for number, step in enumerate(steps):
        scores[f"s{number}"] = step["score"]
        step["score"] = f"s{number}"
    return {
        "format": "token-policy",
        "version": 1,
        "layers": layers,
        "protect": {"first": True, "last": True},
        "scores": scores,
        "steps": list(steps),
        **fields,
    }


def step(score: Any, select: Any, action: Any, layers: list[int], site: str = "mid") -> Any:
    return {"layers": layers, "site": site, "score": score, "select": select, "action": action}


def documents(layers: int) -> dict[str, dict[str, Any]]:
    every, late = list(range(layers)), list(range(1, layers))
    bipartite = {"kind": "bipartite", "ratio": 0.8}
    threshold = {"kind": "threshold", "theta": 0.6}
    column = {"kind": "attn_col", "norm": "unprotected"}
    twice = (step(SIMILAR, bipartite, MERGE, every), step(SIMILAR, bipartite, MERGE, late))
    return {
        "twice": policy(*twice, layers=layers),
        "keys": preset("tome", layers=layers, ratio=0.85, protect_token_ids=[2]),
        "theta": policy(
            step(SIMILAR, {"kind": "bipartite", "theta": 0.3}, MERGE, every), layers=layers
        ),
        "bounds": policy(
            step(SIMILAR, {**bipartite, "min_tokens": 9, "max_tokens": 20}, MERGE, every),
            layers=layers,
            limits={"skip_below": 8},
        ),
        "of-n0-without-bias": policy(
            step(
                SIMILAR,
                {"kind": "bipartite", "ratio": [0.8, 0.6, 0.5][:layers], "of": "n0"},
                {"kind": "merge", "log_size": False},
                every[:3],
            ),
            layers=layers,
        ),
        "before": policy(step(SIMILAR, bipartite, MERGE, late, "pre"), layers=layers),
        "after": policy(step(SIMILAR, bipartite, MERGE, every, "post"), layers=layers),
        "weighed": policy(
            step(WEIGHED, bipartite, MERGE, every),
            step(WEIGHED, bipartite, MERGE, late),
            layers=layers,
        ),
        "all-pairs": policy(
            step(SIMILAR, {"kind": "all_pairs", "ratio": 0.6}, MERGE, every), layers=layers
        ),
        "all-pairs-bounds": policy(
            step(
                SIMILAR,
                {"kind": "all_pairs", "theta": 0.3, "min_tokens": 9, "max_tokens": 20},
                MERGE,
                every,
            ),
            layers=layers,
        ),
        "all-pairs-weighed": policy(
            step(WEIGHED, {"kind": "all_pairs", "ratio": 0.7}, MERGE, every, "post"), layers=layers
        ),
        "weighed-after": policy(step(WEIGHED, bipartite, MERGE, every, "post"), layers=layers),
        "energy": preset("pitome", layers=layers, ratio=0.85),
        "merge-then-drop": policy(
            step(KEYS, bipartite, MERGE, every),
            step(column, threshold, DROP, every),
            layers=layers,
        ),
        "accumulated": policy(
            step(SIMILAR, bipartite, MERGE, every),
            step({"kind": "attn_cum"}, {"kind": "ratio", "ratio": 0.8}, DROP, late),
            layers=layers,
        ),
        "drop": policy(step(column, {"kind": "quantile", "q": 0.2}, DROP, every), layers=layers),
        "drop-before": policy(
            step({**column, "from": "previous"}, threshold, DROP, late, "pre"), layers=layers
        ),
        "neighbours": preset("mid-pool", layers=layers, protect_first=True),
        "neighbours-first": preset("jasper-pool", layers=layers, ratio=0.6),
        "neighbours-capped": preset("mid-pool", layers=layers, stride=2, max_tokens=12),
    }


def rows_of(vocabulary: int, longest: int, seed: int = 3) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = (longest, 1, 2, 3, 17, longest // 2, 7, 12)
    return [rng.integers(5, vocabulary, size).tolist() for size in lengths]


def assert_same(folder: Path, document: Any, rows: list[list[int]]) -> None:
    runtime = tokprune_rt.load(folder, policy=document, precision="fp32")
    chosen = runtime.policy
    assert chosen is not None
    model = transformers.AutoModel.from_pretrained(folder).eval()
    encoder = MergingEncoder(model)
    with torch.inference_mode(), encoder.choosing(Reducer(chosen)):
        output, run = encoder.run(padded(rows, model.config.pad_token_id or 0))
    expected = runtime.forward(rows)
    states = output.last_hidden_state
    assert states.shape[1] < max(map(len, rows))  # rows are gone, not masked
    counts = torch.stack([alive.sum(dim=1) for alive in run.kept])
    np.testing.assert_array_equal(counts, expected.stats.kept_per_sequence)
    pooled = []
    for index, alive in enumerate(run.alive):
        np.testing.assert_array_equal(run.place[index][alive], expected.positions[index])
        np.testing.assert_allclose(states[index][alive], expected.hidden[index], atol=2e-4)
        weight = run.size[index][alive] if Reducer(chosen).over == "size" else alive[alive] * 1.0
        pooled.append((states[index][alive] * weight[:, None]).sum(dim=0) / weight.sum())
    vectors = torch.stack(pooled)
    if runtime.setup.normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    np.testing.assert_allclose(vectors, expected.pooled, atol=1e-4)


@pytest.mark.parametrize("name", documents(3))
def test_rows_are_the_runtime_s(tiny: Any, name: str) -> None:
    assert_same(tiny("bert"), documents(3)[name], rows_of(60, 64))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["twice", "merge-then-drop", "neighbours"])
def test_in_every_family(tiny: Any, family: str, name: str) -> None:
    assert_same(tiny(family), documents(3)[name], rows_of(60, 64))


@pytest.mark.parametrize("name", ["twice", "keys", "energy", "merge-then-drop", "weighed"])
def test_of_real_weights(minilm_folder: Path, token_ids: list[list[int]], name: str) -> None:
    texts = [row for row in token_ids if 20 < len(row) < 200][::60]
    assert len(texts) > 3
    assert_same(minilm_folder, documents(6)[name], texts)


def test_dense_is_the_model_itself(tiny: Any) -> None:
    for family in FAMILIES:
        model = transformers.AutoModel.from_pretrained(tiny(family)).eval()
        inputs = padded(rows_of(60, 40), model.config.pad_token_id)
        encoder = MergingEncoder(model)
        with torch.inference_mode():
            expected = model(**inputs).last_hidden_state
            with encoder.choosing(None):
                found, run = encoder.run(inputs)
            again = model(**inputs).last_hidden_state
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(found.last_hidden_state[real], expected[real], atol=2e-5, rtol=0)
        assert bool((run.kept[-1] == real).all())
        assert torch.equal(again, expected)  # nothing of the encoder is left behind


def test_gradients_pass_through_means(tiny: Any) -> None:
    """Of every row in a group, by its share; against finite differences of the embeddings."""
    model = transformers.AutoModel.from_pretrained(tiny("bert")).eval().double()
    chosen = parse_policy(documents(3)["twice"])
    encoder = MergingEncoder(model)
    inputs = padded([rows_of(60, 20)[0]])
    states = model.get_input_embeddings()(inputs["input_ids"]).detach()

    def loss(rows: torch.Tensor) -> torch.Tensor:
        given = {"attention_mask": inputs["attention_mask"], "inputs_embeds": rows}
        with encoder.choosing(Reducer(chosen)):
            encoder._run = run = encoder._begin(
                given,
                inputs["input_ids"],
                inputs["attention_mask"].bool(),
                torch.zeros_like(inputs["input_ids"]),
            )
            out = model(**given).last_hidden_state
            encoder._run = None
        assert out.shape[1] < rows.shape[1]
        mean: torch.Tensor = (out * run.size[..., None]).sum(dim=1) / run.size.sum()
        return (mean * torch.linspace(-1, 1, out.shape[-1])).sum()

    rows = states.clone().requires_grad_()
    loss(rows).backward()
    assert rows.grad is not None
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        away = torch.randn(states.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            slope = (loss(states + 1e-5 * away) - loss(states - 1e-5 * away)) / 2e-5
        torch.testing.assert_close((rows.grad * away).sum(), slope, rtol=1e-3, atol=1e-6)


def test_what_it_does_not_execute_is_refused() -> None:
    restoring = preset("quantile", layers=3, q=0.3, action="restore")
    for document, message in (
        (preset("quantile", layers=3, q=0.3, action="package"), "action 'package'"),
        (restoring, "action 'restore'"),
        (
            policy(step({"kind": "random"}, {"kind": "ratio", "ratio": 0.5}, DROP, [1]), layers=3),
            "score 'random'",
        ),
    ):
        with pytest.raises(ValueError, match=message + " is not available where rows are merged"):
            Reducer(parse_policy(document))
