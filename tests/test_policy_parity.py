"""The engine's keep decisions and surviving states against the masked PyTorch reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from corpus import enough, spread
from reference import compare_output, run
from tokenizers import Tokenizer
from transformers import AutoModel

from tokprune_rt import _core
from tokprune_rt.policy import ModelInfo, bind_policy, compile_plan, parse_policy, preset

TEXTS = enough(500)
LAYERS = 6
CLS, SEP = 101, 102
STATE_TOLERANCE = 5e-5

PRESET_PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "ltp": [
        {},
        {"final_threshold": 0.012, "deltas": [0, 0.001, 0.0005, 0.002, -0.001, 0.001]},
        {"official": True, "final_threshold": 0.02},
        {"official": True, "final_threshold": 3.0},  # prunes everything
    ],
    "top": [
        {},
        {"token_bits": [[1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]], "official": True},
        {"task": "tokens", "token_bits": [[1, 1, 0, 1], [1, 0, 1, 0]], "gate_bits": [1, 0]},
    ],
    "topk": [{}, {"k": [40, 30, 20, 10, 5, 1]}, {"action": "restore"}],
    "power-bert": [{}, {"retention": [60, 50, 40, 30, 20, 10]}],
    "spatten": [{}, {"decay": 0.5, "final_keep": 0.3}],
    "lat": [{}, {"action": "restore"}, {"length_configs": [64, 48, 32, 16, 8, 4]}],
    "quantile": [{}, {"q": 0.3, "action": "package"}, {"q": 0.2, "protect_token_ids": [1010, SEP]}],
    "top-p": [{}, {"p": 0.6}],
    "static-idf": [{}, {"ratio": 0.4, "action": "package"}],
}
CASES = [(name, i) for name, variants in PRESET_PARAMETERS.items() for i in range(len(variants))]


def score(kind: str = "attn_col", **options: Any) -> dict[str, Any]:
    return {"s": {"kind": kind, **options}}


def policy(
    select: dict[str, Any],
    scores: dict[str, Any] | None = None,
    *,
    layers: list[int] | None = None,
    site: str = "mid",
    action: str = "drop",
    **fields: Any,
) -> dict[str, Any]:
    step = {
        "layers": layers or [1, 3, 4],
        "site": site,
        "score": "s",
        "select": select,
        "action": {"kind": action},
    }
    document = {
        "format": "token-policy",
        "version": 1,
        "layers": LAYERS,
        "protect": {"first": True},
        "scores": scores or score(),
        "steps": [step],
    }
    return {**document, **fields}


# Options of the format that no preset uses.
OPTIONS: dict[str, dict[str, Any]] = {
    "heads-max": policy({"kind": "ratio", "ratio": 0.7}, score(heads="max")),
    "heads-sum-diagonal-out": policy({"kind": "topk", "k": 12}, score(heads="sum", diagonal=False)),
    "first-query": policy({"kind": "quantile", "q": 0.25}, score(query="first")),
    "cls": policy({"kind": "quantile", "q": 0.25}, score("attn_cls")),
    "cls-times-value-norm": policy({"kind": "top_p", "p": 0.8}, score("attn_cls", value_norm=True)),
    "norm-alive": policy({"kind": "threshold_n", "eta": 0.4}, score(norm="alive")),
    "norm-n0": policy({"kind": "threshold", "theta": 0.01}, score(norm="n0")),
    "relative-mean": policy({"kind": "threshold_rel", "t": 0.5, "of": "mean"}),
    "relative-max": policy({"kind": "threshold_rel", "t": 0.05}),
    "ratio-of-input-rounded": policy(
        {"kind": "ratio", "ratio": [0.9, 0.55, 0.35], "of": "n0", "round": "round"}
    ),
    "ratio-floor-limits": policy(
        {"kind": "ratio", "ratio": 0.5, "round": "floor", "max_tokens": 40},
        limits={"min_tokens": 4, "skip_below": 9},
    ),
    "previous-at-mid": policy({"kind": "ratio", "ratio": 0.8}, score(**{"from": "previous"})),
    "previous-at-pre": policy(
        {"kind": "ratio", "ratio": 0.8}, score(**{"from": "previous"}), site="pre"
    ),
    "post": policy({"kind": "ratio", "ratio": 0.8}, site="post"),
    "post-restore": policy(
        {"kind": "ratio", "ratio": 0.7},
        site="post",
        action="restore",
        output={"kind": "mean", "over": "restored"},
    ),
    "post-package-size": policy(
        {"kind": "ratio", "ratio": 0.7},
        site="post",
        action="package",
        output={"kind": "mean", "over": "size"},
    ),
    "cumulative-post": policy(
        {"kind": "ratio", "ratio": 0.8}, score("attn_cum", decay=0.7), site="post"
    ),
    "random": policy({"kind": "ratio", "ratio": 0.75}, score("random", seed=7), layers=[0, 2, 5]),
    "random-embed": policy(
        {"kind": "ratio", "ratio": 0.5}, score("random"), layers=[0], site="embed"
    ),
    # The first token is dropped at layer 1 and goes on through layer 2, which has no step.
    "passive-through-a-layer-without-steps": policy(
        {"kind": "threshold", "theta": [3.0, 3.0]},
        score(norm="const", n=128),
        layers=[1, 3],
        protect={},
        dead_first="passive",
    ),
    "protect-last-and-id": policy(
        {"kind": "ratio", "ratio": 0.5},
        score(norm="unprotected"),
        protect={"first": True, "last": True, "token_ids": [1996]},
    ),
}


@pytest.fixture(scope="module")
def token_ids(minilm_folder: Any) -> list[list[int]]:
    """Real texts from one word to the longest input, then the extreme lengths."""
    tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=512)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(spread(TEXTS))]
    words = [token for row in ids for token in row if token not in (CLS, SEP)]
    return [*ids, [CLS], [SEP], [2023], [CLS, *words[:510], SEP]]


@pytest.fixture(scope="module")
def torch_model(minilm_folder: Any) -> Any:
    torch.set_num_threads(2)
    return AutoModel.from_pretrained(minilm_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def encoder(minilm: Any) -> Any:
    return minilm.engine.encoder


def fewer(token_ids: list[list[int]]) -> list[list[int]]:
    """A fifth of the texts, and the extreme lengths."""
    return [*token_ids[:-4:5], *token_ids[-4:]]


def plan_of(document: dict[str, Any]) -> dict[str, Any]:
    info = ModelInfo(layers=LAYERS, vocab_size=30522, max_positions=512)
    plan = compile_plan(bind_policy(parse_policy(document, document.pop("tensors", None)), info))
    assert plan is not None
    return plan


def chunks(token_ids: list[list[int]], padded_tokens: int = 4096) -> Iterator[list[list[int]]]:
    """Sequences of similar length together, so that the padded reference stays small."""
    chunk: list[list[int]] = []
    for row in sorted(token_ids, key=len):
        if chunk and len(row) * (len(chunk) + 1) > padded_tokens:
            yield chunk
            chunk = []
        chunk.append(row)
    yield chunk


def check(
    encoder: Any, torch_model: Any, token_ids: list[list[int]], plan: dict[str, Any]
) -> float:
    """Asserts equal decisions outside the tie band and equal states; returns the kept share."""
    compiled = _core.Plan(plan)
    agreeing = kept = 0
    for rows in chunks(token_ids):
        flat = np.concatenate([np.asarray(row, np.int32) for row in rows])
        cu_seqlens = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        ours = encoder.forward(flat, cu_seqlens, plan=compiled, trace=True)
        reference = run(torch_model, rows, plan, dtype=torch.float32, pooling=["mean"])
        result = compare_output(reference, ours)
        assert result.mismatches == []
        assert result.hidden <= STATE_TOLERANCE
        assert result.pooled <= STATE_TOLERANCE
        assert result.scores <= 1e-3
        agreeing += len(result.agreeing)
        kept += sum(map(len, reference.kept[-1]))
    assert agreeing >= 0.98 * len(token_ids), "too many ties to mean anything"
    return kept / sum(map(len, token_ids))


@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}-{i}" for n, i in CASES])
def test_presets(
    encoder: Any, torch_model: Any, token_ids: list[list[int]], name: str, variant: int
) -> None:
    parameters = dict(PRESET_PARAMETERS[name][variant])
    if name == "static-idf":
        parameters |= {"documents": token_ids, "vocab_size": 30522}
    plan = plan_of(preset(name, layers=LAYERS, **parameters))
    some = token_ids if variant == 0 else fewer(token_ids)
    assert check(encoder, torch_model, some, plan) < 1, "nothing pruned tests nothing"


@pytest.mark.parametrize("name", OPTIONS)
def test_options(encoder: Any, torch_model: Any, token_ids: list[list[int]], name: str) -> None:
    assert check(encoder, torch_model, fewer(token_ids), plan_of(dict(OPTIONS[name]))) < 1


def test_scores_of_ltp_sum_to_alive_over_norm(encoder: Any, token_ids: list[list[int]]) -> None:
    """Every alive query row hands out probabilities that sum to 1, also in a batch of two."""
    plan = plan_of(preset("ltp", layers=LAYERS, official=True, final_threshold=0.02))
    batch = [token_ids[-1], token_ids[len(token_ids) // 2]]
    flat = np.concatenate([np.asarray(row, np.int32) for row in batch])
    cu_seqlens = np.cumsum([0, *map(len, batch)]).astype(np.int32)
    out = encoder.forward(flat, cu_seqlens, plan=_core.Plan(plan), trace=True)
    for layer in range(1, LAYERS):
        alive = [len(kept) for kept in out["trace_kept"][layer - 1]]
        sums = [np.nansum(row, dtype=np.float64) for row in out["trace_scores"][layer]]
        np.testing.assert_allclose(sums, np.array(alive) / 128, rtol=1e-5)
