"""The engine's keep decisions and surviving states against the masked PyTorch reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity import LAYERS, check, fewer, plan_of

from tokprune_rt import _core
from tokprune_rt.policy import preset

SEP = 102

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
    # Entropies lie close together, but so do their errors: relative to a whole sum, as elsewhere.
    "entropy": [{}, {"ratio": 0.7, "sign": -1}],
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
    "column-entropy": policy(
        {"kind": "threshold_rel", "t": 0.8, "of": "mean"}, score("col_entropy", heads="max")
    ),
    "column-entropy-post-restore": policy(
        {"kind": "ratio", "ratio": 0.8},
        score("col_entropy", sign=-1),
        site="post",
        action="restore",
    ),
    "row-entropy-sum-previous-at-pre": policy(
        {"kind": "quantile", "q": 0.2},
        score("row_entropy", heads="sum", **{"from": "previous"}),
        site="pre",
    ),
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
def encoder(minilm: Any) -> Any:
    return minilm.engine.encoder


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
