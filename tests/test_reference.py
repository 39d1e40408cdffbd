"""The masked reference against transformers, naive physical removal and hand-computed cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from reference import compare, compare_output, run
from reference.scores import _mix, random_scores
from torch import Tensor

torch.set_num_threads(1)

LAYERS, HEADS = 3, 4
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (transformers.BertConfig, {"hidden_act": "gelu_new"}),
    "roberta": (transformers.RobertaConfig, {}),
    "xlm-roberta": (transformers.XLMRobertaConfig, {}),
    "camembert": (transformers.CamembertConfig, {}),
    "electra": (transformers.ElectraConfig, {"embedding_size": 16}),
    "distilbert": (transformers.DistilBertConfig, {}),
    "mpnet": (transformers.MPNetConfig, {}),
}
BATCH = [[2, 11, 12, 13, 14, 15, 16, 17, 18, 3], [2, 21, 22, 23, 3], [2, 31, 32, 1, 34, 35, 36, 3]]


def make(family: str, seed: int = 0) -> Any:
    config_class, extra = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(**(TINY | extra))
    model = transformers.AutoModel.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.double().eval()


def score(kind: str = "attn_col", **fields: Any) -> dict[str, Any]:
    defaults = {
        "heads": "mean",
        "diagonal": True,
        "query": "alive",
        "segment": 0,
        "norm": "none",
        "n": 1.0,
        "from": "this",
        "decay": 1.0,
        "value_norm": False,
        "table": None,
        "index": "token",
        "seed": 0,
    }
    return {"kind": kind, **defaults, **fields}


def step(layer: int, site: str, kind: str, action: str = "drop", **fields: Any) -> dict[str, Any]:
    chosen = {"kind": kind, "min_tokens": 1, "max_tokens": 0, **fields}
    which = chosen.pop("score", 0)
    return {"layer": layer, "site": site, "score": which, "action": action, "select": chosen}


def plan(steps: list[dict], *scores: dict, **fields: Any) -> dict[str, Any]:
    protect = {"first": True, "last": False, "token_ids": [], "segment": -1}
    return {
        "layers": LAYERS,
        "protect": protect | fields.pop("protect", {}),
        "skip_below": 0,
        "dead_first": False,
        "log_size": False,
        "output": {"kind": "none", "over": "kept"},
        "scores": list(scores) or [score()],
        "steps": steps,
        **fields,
    }


def ratio(layer: int, site: str = "mid", r: float = 0.6, **fields: Any) -> dict[str, Any]:
    return step(layer, site, "ratio", ratio=r, of="n", round="ceil", **fields)


def dense(model: Any, ids: list[int], **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_plan_equals_transformers(family: str) -> None:
    model = make(family)
    pad, width = 1, max(map(len, BATCH))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in BATCH])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in BATCH])
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state
    result = run(model, BATCH)
    for b, row in enumerate(BATCH):
        np.testing.assert_allclose(result.hidden[b], expected[b, : len(row)], atol=1e-6)
        assert result.positions[b].tolist() == list(range(len(row)))
    single = run(model.float(), BATCH, dtype=torch.float32)
    assert single.hidden[0].dtype == np.float32
    np.testing.assert_allclose(single.hidden[0], result.hidden[0], atol=1e-3)


def test_token_types_and_task_model_are_read() -> None:
    config = transformers.BertConfig(**TINY)
    model = transformers.BertForSequenceClassification(config).double().eval()
    types = [0] * 4 + [1] * 6
    expected = dense(model.bert, BATCH[0], token_type_ids=torch.tensor([types]))
    result = run(model, BATCH[:1], token_type_ids=[types])
    np.testing.assert_allclose(result.hidden[0], expected.last_hidden_state[0], atol=1e-6)


def remove_rows(model: Any, ids: list[int], theta: float, rate: float) -> tuple[Tensor, list]:
    """Physical removal on one BERT sequence: threshold at mid of layer 1, rate after layer 1."""
    x = model.embeddings(torch.tensor([ids]))[0]
    position = list(range(len(ids)))
    for index, layer in enumerate(model.encoder.layer):
        this, n = layer.attention.self, len(x)
        q, k, v = (
            linear(x).view(n, HEADS, -1).transpose(0, 1)
            for linear in (this.query, this.key, this.value)
        )
        p = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
        column = p.sum(1).mean(0)
        keep = list(range(n))
        if index == 1:
            scaled = column / column[1:].mean()
            keep = [j for j in range(n) if j == 0 or scaled[j] >= theta]
        context = (p[:, keep] @ v).transpose(0, 1).reshape(len(keep), -1)
        x = layer.attention.output(context, x[keep])
        x = layer.output(layer.intermediate(x), x)
        column, position = column[keep], [position[j] for j in keep]
        if index == 1:
            count = math.ceil(rate * len(x)) - 1
            best = sorted(range(1, len(x)), key=lambda j: -float(column[j]))[:count]
            keep = sorted([0, *best])
            x, position = x[keep], [position[j] for j in keep]
    return x, position


def test_masked_equals_physical_removal() -> None:
    model = make("bert", seed=3)
    threshold = step(1, "mid", "threshold", theta=0.8, score=1)
    steps = [threshold, ratio(1, "post", 0.7)]
    result = run(model, BATCH, plan(steps, score(), score(norm="unprotected")))
    for b, ids in enumerate(BATCH):
        with torch.no_grad():
            x, position = remove_rows(model, ids, 0.8, 0.7)
        assert result.positions[b].tolist() == position
        assert result.alive[b].all() and len(position) < len(ids)
        np.testing.assert_allclose(result.hidden[b], x, atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_batch_does_not_matter(family: str) -> None:
    model = make(family)
    steps = [ratio(0), ratio(1, action="package"), ratio(2, "pre", score=1)]
    policy = plan(steps, score(), score(**{"from": "previous"}))
    together = run(model, BATCH, policy)
    for b, ids in enumerate(BATCH):
        alone = run(model, [ids], policy)
        assert alone.positions[0].tolist() == together.positions[b].tolist()
        np.testing.assert_allclose(alone.hidden[0], together.hidden[b], atol=1e-9)


def test_ltp_score_sums_to_alive_over_norm() -> None:
    model = make("bert", seed=1)
    theta = step(0, "mid", "threshold", theta=0.09)
    policies = {
        "alive": lambda n, _: 1.0,
        "const": lambda n, _: n / 128,
        "n0": lambda n, n0: n / n0,
        "none": lambda n, _: n,
    }
    for norm, total in policies.items():
        scores = [score(norm="n0"), score(norm=norm, n=128.0)]
        result = run(model, BATCH, plan([theta, ratio(1, score=1)], *scores))
        for b, ids in enumerate(BATCH):
            n = len(result.kept[0][b])
            assert np.nansum(result.scores[1][b]) == pytest.approx(total(n, len(ids)))
            alive = np.flatnonzero(~np.isnan(result.scores[1][b]))
            assert alive.tolist() == result.kept[0][b].tolist()
    assert len(result.kept[0][0]) < len(BATCH[0])


def test_passive_first_token() -> None:
    model = make("bert")
    table = np.arange(100, dtype=np.float32)
    drop_first = step(1, "mid", "threshold", theta=1.0, min_tokens=0)
    policy = plan(
        [drop_first],
        score("table", table=table, index="position"),
        protect={"first": False},
        dead_first=True,
    )
    result = run(model, BATCH[:1], policy)
    assert result.kept[1][0].tolist() == list(range(1, 10))
    assert result.positions[0].tolist() == list(range(10))
    assert result.alive[0].tolist() == [False] + [True] * 9

    # Dropped at mid of layer 1: still this layer's context, none in layer 2.
    layer, x = model.encoder.layer[2], dense(model, BATCH[0]).hidden_states[2]
    with torch.no_grad():
        passive = layer.attention.output(torch.zeros_like(x[:, :1]), x[:, :1])
        passive = layer.output(layer.intermediate(passive), passive)[0, 0]
        others = layer(x[:, 1:])
        others = others[0] if isinstance(others, tuple) else others
    np.testing.assert_allclose(result.hidden[0][0], passive, atol=1e-9)
    np.testing.assert_allclose(result.hidden[0][1:], others.reshape(9, -1), atol=1e-9)

    everything = policy | {"steps": [step(0, "mid", "threshold", theta=99.0, min_tokens=0)]}
    empty = run(model, BATCH[:1], everything)
    assert empty.kept[2][0].size == 0 and empty.positions[0].tolist() == [0]
    assert np.isfinite(empty.hidden[0]).all()


def test_pre_from_previous_keeps_what_mid_keeps() -> None:
    model = make("bert")
    mid = run(model, BATCH, plan([ratio(0)]))
    pre = run(model, BATCH, plan([ratio(1, "pre")], score(**{"from": "previous"})))
    for b in range(len(BATCH)):
        assert mid.positions[b].tolist() == pre.positions[b].tolist()
        np.testing.assert_allclose(mid.hidden[b], pre.hidden[b], atol=1e-9)


@pytest.mark.parametrize(("site", "state"), [("pre", 1), ("mid", 1), ("post", 2)])
def test_restore_returns_the_last_full_state(site: str, state: int) -> None:
    model = make("bert")
    source = "previous" if site == "pre" else "this"
    steps = [ratio(1, site, action="restore")]
    output = {"kind": "mean", "over": "restored"}
    result = run(model, BATCH[:1], plan(steps, score(**{"from": source}), output=output))
    full = dense(model, BATCH[0]).hidden_states[state][0].numpy()
    dropped = ~result.alive[0]
    assert result.positions[0].tolist() == list(range(10)) and dropped.sum() == 4
    np.testing.assert_allclose(result.hidden[0][dropped], full[dropped], atol=1e-9)
    np.testing.assert_allclose(result.pool(["mean"])[0], result.hidden[0].mean(0))
    alive_mean = result.hidden[0][~dropped].mean(0)
    np.testing.assert_allclose(result.pool(["mean"], over="kept")[0], alive_mean)


def test_package_at_embed() -> None:
    model = make("bert")
    table = np.array([9, 1, 8, 3, 7, 0, 6, 2, 5, 4], dtype=np.float32)
    steps = [step(0, "embed", "topk", "package", k=6), step(1, "pre", "topk", "package", k=4)]
    scores = score("table", table=table, index="position")
    result = run(model, BATCH[:1], plan(steps, scores, output={"kind": "mean", "over": "size"}))
    with torch.no_grad():
        x = model.embeddings(torch.tensor([BATCH[0]]))[0]
        first = torch.tensor([1.0, 3, 0, 2], dtype=torch.float64) / 6 @ x[[1, 3, 5, 7]]
        x = model.encoder.layer[0](torch.cat([x[[0, 2, 4, 6, 8, 9]], first[None]])[None])
        x = (x[0] if isinstance(x, tuple) else x).reshape(7, -1)
        # Left of the seven: positions 0 2 4 6 (scores 9 8 7 6); 8, 9 and the package at 1 go.
        second = torch.tensor([5.0, 4, 1], dtype=torch.float64) / 10 @ x[4:]
        x = torch.cat([x[:4], second[None]])[None]
        for layer in model.encoder.layer[1:]:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
    assert result.kept[0][0].tolist() == [0, 2, 4, 6, 8, 9, 1]
    assert result.positions[0].tolist() == [0, 2, 4, 6, 1]
    assert result.sizes[0].tolist() == [1, 1, 1, 1, 6]
    np.testing.assert_allclose(result.hidden[0], x.reshape(5, -1), atol=1e-9)
    weights = np.array([1, 1, 1, 1, 6])
    np.testing.assert_allclose(result.pool(["mean"])[0], weights @ result.hidden[0] / 10)


def test_package_at_mid_follows_the_norm() -> None:
    model = make("bert", seed=2)
    result = run(model, BATCH[:1], plan([ratio(LAYERS - 1, action="package")]))
    layer, x = model.encoder.layer[-1], dense(model, BATCH[0]).hidden_states[-2]
    weights = result.scores[-1][0].copy()
    weights[result.kept[-1][0][:-1]] = 0
    weights /= weights.sum()
    with torch.no_grad():
        rows = layer.attention(x)[0].reshape(10, -1)
        packed = torch.from_numpy(weights) @ rows
        packed = layer.output(layer.intermediate(packed), packed)
    np.testing.assert_allclose(result.hidden[0][-1], packed, atol=1e-9)


def test_attention_scores() -> None:
    model = make("bert")
    ids, segments = BATCH[0], [0] * 4 + [1] * 6
    probs = torch.cat(dense(model, ids, output_attentions=True).attentions).numpy()
    x = dense(model, ids).hidden_states[1]
    values = model.encoder.layer[1].attention.self.value(x).detach().view(10, HEADS, -1)
    columns = probs[1].sum(1)
    off = np.where(np.eye(10, dtype=bool), 0, probs).sum(2).mean(1)
    norms = np.linalg.norm(values.numpy(), axis=-1).T
    cases = [
        (score(), columns.mean(0)),
        (score(heads="sum"), columns.sum(0)),
        (score(heads="max"), columns.max(0)),
        (score(diagonal=False), off[1]),
        (score(query="first"), probs[1][:, 0].mean(0)),
        (score(query="segment", segment=1), probs[1][:, 4:].sum(1).mean(0)),
        (score(norm="unprotected"), columns.mean(0) / columns.mean(0)[1:].mean()),
        (score(**{"from": "previous"}), probs[0].sum(1).mean(0)),
        (score("attn_cls"), probs[1][:, 0].mean(0)),
        (score("attn_cls", value_norm=True), (probs[1][:, 0] * norms).mean(0)),
        (score("attn_cum", decay=0.5, diagonal=False), 0.5 * off[0] + off[1]),
    ]
    for spec, expected in cases:
        result = run(model, [ids], plan([ratio(1)], spec), segment_ids=[segments])
        np.testing.assert_allclose(result.scores[1][0], expected, atol=1e-9)
        assert np.isnan(result.scores[0][0]).all()


def test_random_and_table_scores() -> None:
    assert _mix(0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 seeded with 0
    spec = score("random", seed=5)
    positions = np.arange(200)
    first = random_scores(spec, [1, 2, 3], positions, layer=0)
    assert ((first >= 0) & (first < 1)).all() and 0.4 < first.mean() < 0.6
    assert not np.array_equal(first, random_scores(spec, [1, 2, 4], positions, layer=0))
    assert not np.array_equal(first, random_scores(spec, [1, 2, 3], positions, layer=1))
    table = np.zeros(60, dtype=np.float32)
    table[[13, 15]] = 1
    policy = plan([step(0, "embed", "topk", k=4)], score("table", table=table))
    result = run(make("bert"), BATCH[:1], policy)
    # Equal scores: the lower position stays, and a tie of noise-free scores is no tie.
    assert result.positions[0].tolist() == [0, 1, 3, 5]
    assert result.margin[0][0] == math.inf


def test_protection_limits_and_short_sequences() -> None:
    model = make("bert")
    hard = step(0, "mid", "topk", k=1)
    types = [[0] * 3 + [1] * (len(ids) - 3) for ids in BATCH]
    mask = [[0, 0, 0, 1] + [0] * (len(ids) - 4) for ids in BATCH]
    protect = {"last": True, "token_ids": [11, 22], "segment": -1}
    result = run(model, BATCH, plan([hard], protect=protect), protect=mask)
    assert [p.tolist() for p in result.positions] == [[0, 1, 3, 9], [0, 2, 3, 4], [0, 3, 7]]
    result = run(model, BATCH, plan([hard], protect={"segment": 0}), token_type_ids=types)
    assert [p.tolist() for p in result.positions] == [[0, 1, 2]] * 3
    result = run(model, BATCH, plan([hard], skip_below=8))
    assert [len(p) for p in result.positions] == [1, 5, 1]
    assert np.isnan(result.scores[0][1]).all()
    with pytest.raises(ValueError, match="segment"):
        run(model, BATCH, plan([hard], protect={"segment": 0}))


def test_pooling_modes() -> None:
    result = run(make("bert"), BATCH, plan([ratio(0)]), pooling=["cls", "mean"])
    x, positions = result.hidden[0], result.positions[0]
    modes = ["cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken"]
    place = positions + 1
    expected = [
        x[0],
        x.max(0),
        x.mean(0),
        x.sum(0) / np.sqrt(len(x)),
        place @ x / place.sum(),
        x[-1],
    ]
    np.testing.assert_allclose(result.pool(modes)[0], np.concatenate(expected))
    assert result.pooled is not None and result.pooled.shape == (3, 64)


def test_compare_tells_ties_from_mismatches() -> None:
    model = make("bert")
    result = run(model, BATCH, plan([ratio(0), ratio(1)]), pooling=["mean"])
    same = {
        "hidden": np.concatenate(result.hidden),
        "positions": np.concatenate(result.positions),
        "cu_kept": np.cumsum([0, *map(len, result.hidden)]),
        "pooled": result.pooled,
        "trace_kept": result.kept,
        "trace_scores": [*result.scores[:2], None],
    }
    found = compare_output(result, same)
    assert found.agreeing == [0, 1, 2] and not found.mismatches and not found.ties
    assert (found.hidden, found.pooled, found.scores) == (0, 0, 0)

    changed = [[layer[0][:-1], *layer[1:]] for layer in result.kept]
    found = compare(result, kept=changed, hidden=[result.hidden[0][:-1], *result.hidden[1:]])
    assert [(m.layer, m.sequence) for m in found.mismatches] == [(0, 0)]
    assert found.mismatches[0].only_reference == [int(result.kept[0][0][-1])]
    assert found.agreeing == [1, 2] and not found.ties
    found = compare(result, kept=changed, band=1.0)
    assert [(m.layer, m.sequence) for m in found.ties] == [(0, 0)] and not found.mismatches
