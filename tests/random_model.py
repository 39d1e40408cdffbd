"""Random encoders for the compiled core, made without model files: weights, batches and plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gates
import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]
Config = dict[str, Any]

LAYERS = 3
RATIOS = (0.9, 0.6, 0.75, 0.3)

BASE: Config = {
    "layers": LAYERS,
    "hidden": 48,
    "heads": 3,
    # More inner columns than one block of the product, so that sums are continued across blocks.
    "intermediate": 320,
    "embedding_size": 48,
    "vocab_size": 60,
    "max_positions": 80,
    "position_offset": 0,
    "position_pad_id": -1,
    "type_vocab_size": 2,
    "activation": "gelu",
    "layer_norm_eps": 1e-12,
    "relative_attention": False,
    "pooling": ["cls"],
    "dense_activations": [],
    "head": "first",
    "head_activation": "tanh",
}

MODELS: dict[str, Config] = {
    "first": {},
    # Heads narrower than a panel, a projected embedding, positions that skip pads.
    "mpnet": {
        "hidden": 40,
        "heads": 4,
        "embedding_size": 24,
        "position_offset": 2,
        "position_pad_id": 1,
        "type_vocab_size": 0,
        "activation": "relu",
        "relative_attention": True,
        "pooling": ["mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len"],
        "dense_activations": ["tanh"],
        "head": "none",
        "head_activation": "",
    },
    "token": {"activation": "gelu_tanh", "pooling": [], "head": "token", "head_activation": ""},
}


@dataclass(frozen=True)
class Tokens:
    """One sequence: ids and segment ids, int32 [length]."""

    ids: Ids
    types: Ids

    def __len__(self) -> int:
        return len(self.ids)


def config(**changes: Any) -> Config:
    return BASE | changes


def tensors(shape: Config, seed: int = 0) -> dict[str, Floats]:
    """Every tensor that ``shape`` asks for, from a seeded generator."""
    rng = np.random.default_rng(seed)
    result: dict[str, Floats] = {}
    d, e = shape["hidden"], shape["embedding_size"]

    def table(name: str, *dims: int) -> None:
        result[name] = rng.standard_normal(dims).astype(np.float32)

    def norm(name: str, size: int) -> None:
        result[f"{name}.weight"] = (1 + 0.1 * rng.standard_normal(size)).astype(np.float32)
        result[f"{name}.bias"] = (0.1 * rng.standard_normal(size)).astype(np.float32)

    def linear(name: str, outputs: int, inputs: int) -> None:
        weight = rng.standard_normal((outputs, inputs)) * 1.5 / np.sqrt(inputs)
        result[f"{name}.weight"] = weight.astype(np.float32)
        result[f"{name}.bias"] = (0.1 * rng.standard_normal(outputs)).astype(np.float32)

    table("embeddings.word", shape["vocab_size"], e)
    table("embeddings.position", shape["position_offset"] + shape["max_positions"], e)
    if shape["type_vocab_size"]:
        table("embeddings.token_type", shape["type_vocab_size"], e)
    norm("embeddings.norm", e)
    if e != d:
        linear("embeddings.project", d, e)
    if shape["relative_attention"]:
        table("relative_bias", shape["heads"], 2 * shape["max_positions"] - 1)
    for i in range(shape["layers"]):
        for part in "qkvo":
            linear(f"layers.{i}.{part}", d, d)
        norm(f"layers.{i}.attention_norm", d)
        linear(f"layers.{i}.ffn_in", shape["intermediate"], d)
        linear(f"layers.{i}.ffn_out", d, shape["intermediate"])
        norm(f"layers.{i}.ffn_norm", d)
    width = d * len(shape["pooling"])
    for j in range(len(shape["dense_activations"])):
        linear(f"dense.{j}", 20, width)
        width = 20
    if shape["head"] != "none":
        if shape["head_activation"]:
            linear("head.dense", d, d)
        linear("head.out", 3, d)
    return result


def tokens(shape: Config, length: int, seed: int) -> Tokens:
    """A random sequence; some ids repeat the pad id of the position table, if it has one."""
    rng = np.random.default_rng(seed * 1009 + length)
    ids = rng.integers(0, shape["vocab_size"], length)
    types = (np.arange(length) >= rng.integers(0, length + 1)).astype(np.int32)
    return Tokens(ids.astype(np.int32), types)


def forward(encoder: Any, sequences: Sequence[Tokens], **options: Any) -> dict[str, Any]:
    """One call of ``_core.Encoder.forward`` on a ragged batch."""
    bounds = np.cumsum([0, *map(len, sequences)]).astype(np.int32)
    ids = np.concatenate([item.ids for item in sequences])
    types = np.concatenate([item.types for item in sequences])
    return encoder.forward(ids, bounds, token_type_ids=types, **options)


def score(kind: str, **changes: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
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
    return {"kind": kind} | defaults | changes


def entropy(kind: str, **changes: Any) -> dict[str, Any]:
    return {"kind": kind, "heads": "mean", "from": "this", "sign": 1} | changes


def gate(
    hidden: int, outputs: int, softmax: bool = False, activation: str = "gelu"
) -> dict[str, Any]:
    """A gate in every layer, for models of width 48 or 40."""
    layers = {i: gates.perceptron(hidden, 21, outputs, i) for i in range(LAYERS)}
    return {"kind": "gate", "activation": activation, "softmax": softmax, "layers": layers}


def predictor(hidden: int, ratios: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Fields of a predicted_ratio selection, for models of width 48 or 40."""
    network = gates.perceptron(hidden, 70, len(ratios), seed)
    return {"ratios": list(ratios), "activation": "relu", **network}


def step(layer: int, site: str, action: str, kind: str, **select: Any) -> dict[str, Any]:
    """A step that reads the plan's only score."""
    chosen = {"kind": kind, "min_tokens": 1, "max_tokens": 0} | select
    return {"layer": layer, "site": site, "score": 0, "action": action, "select": chosen}


def plan(scored: dict[str, Any], steps: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A plan for ``_core.Plan`` with one score; the first token is protected by default."""
    protect = {"first": True, "last": False, "token_ids": [], "segment": -1}
    settings: dict[str, Any] = {
        "layers": LAYERS,
        "skip_below": 0,
        "dead_first": False,
        "log_size": False,
        "output": {"kind": "none", "over": "kept"},
        "scores": [scored],
        "steps": steps,
    }
    return settings | changes | {"protect": protect | changes.get("protect", {})}


def every_layer(site: str, action: str, kind: str, **select: Any) -> list[dict[str, Any]]:
    return [step(layer, site, action, kind, **select) for layer in range(LAYERS)]


def plans(vocab_size: int = BASE["vocab_size"]) -> dict[str, dict[str, Any]]:
    """One plan for each place, action, selector and score, by name."""
    column = score("attn_col")
    relative = score("attn_col", norm="unprotected")
    previous = score("attn_col", **{"from": "previous"}, heads="max", diagonal=False)
    table = np.linspace(-1, 1, vocab_size, dtype=np.float32)
    later = range(1, LAYERS)
    bits = [1, 0, 1, 1, 0]
    rank = {"bits": bits, "bin_rule": "float32"}
    none = {"kind": "none", "over": "kept"}
    return {
        "empty": plan(column, []),
        "threshold drop mid": plan(
            relative, every_layer("mid", "drop", "threshold", theta=0.7), skip_below=4
        ),
        "threshold_n restore mid": plan(
            column,
            every_layer("mid", "restore", "threshold_n", eta=12.0),
            output={"kind": "tokens", "over": "kept"},
        ),
        "threshold_rel restore post": plan(
            relative,
            every_layer("post", "restore", "threshold_rel", t=0.8, of="mean"),
            output={"kind": "tokens", "over": "kept"},
        ),
        "topk package mid": plan(
            column,
            every_layer("mid", "package", "topk", k=9),
            output=none | {"over": "size"},
            protect={"last": True},
        ),
        "top_p package post": plan(
            score("attn_col", query="segment", segment=1),
            every_layer("post", "package", "top_p", p=0.8),
        ),
        "quantile drop pre": plan(
            previous, [step(i, "pre", "drop", "quantile", q=0.3) for i in later]
        ),
        "rank_bins drop mid": plan(
            score("attn_cls"), every_layer("mid", "drop", "rank_bins", **rank)
        ),
        "value norm drop mid": plan(
            score("attn_cls", value_norm=True),
            every_layer("mid", "drop", "rank_bins", bits=bits, bin_rule="int"),
        ),
        "random ratio embed": plan(
            score("random", seed=5),
            [step(0, "embed", "drop", "ratio", ratio=0.6, of="n0", round="ceil")],
            protect={"first": False, "token_ids": [3, 4], "segment": 1},
        ),
        "attn_cum ratio mid": plan(
            score("attn_cum", decay=0.5),
            [step(i, "mid", "drop", "ratio", ratio=0.7, of="n", round="round") for i in later],
        ),
        "previous threshold mid": plan(
            previous, [step(i, "mid", "drop", "threshold_rel", t=0.3, of="max") for i in later]
        ),
        "passive first mid": plan(
            score("attn_col", norm="alive"),
            every_layer("mid", "drop", "threshold_n", eta=1.0, min_tokens=0),
            dead_first=True,
            protect={"first": False},
        ),
        "table topk pre": plan(
            score("table", table=table), every_layer("pre", "drop", "topk", k=20, max_tokens=12)
        ),
        "row entropy drop mid": plan(
            entropy("row_entropy", sign=-1), every_layer("mid", "drop", "quantile", q=0.2)
        ),
        "column entropy restore post": plan(
            entropy("col_entropy", heads="max"),
            every_layer("post", "restore", "threshold_rel", t=0.7, of="max"),
            output={"kind": "tokens", "over": "kept"},
        ),
        "column entropy package mid": plan(
            entropy("col_entropy"), every_layer("mid", "package", "topk", k=15)
        ),
        "previous row entropy mid": plan(
            entropy("row_entropy", heads="sum", **{"from": "previous"}),
            [step(i, "mid", "drop", "threshold_rel", t=0.9, of="mean") for i in later],
        ),
        "predicted ratio restore post": plan(
            score("random", seed=3),
            [
                step(i, "post", "restore", "predicted_ratio", **predictor(48, RATIOS, i))
                for i in range(LAYERS)
            ],
            output={"kind": "tokens", "over": "kept"},
            skip_below=5,
        ),
        "predicted ratio embed": plan(
            gate(40, 2),
            # The second leaves short sequences alone and has fewer ratios than the first.
            [
                step(0, "embed", "drop", "predicted_ratio", **predictor(40, RATIOS)),
                step(0, "pre", "drop", "predicted_ratio", min_tokens=12, **predictor(40, [0.8])),
            ],
        ),
        "gate restore pre": plan(
            gate(48, 2),
            every_layer("pre", "restore", "gate", threshold=-0.3),
            output={"kind": "tokens", "over": "kept"},
            skip_below=12,
        ),
        "gate softmax drop pre": plan(
            gate(48, 1, True, "tanh"), every_layer("pre", "drop", "threshold_n", eta=0.3)
        ),
        "gate package post": plan(
            gate(40, 1, activation="relu"),
            every_layer("post", "package", "gate", threshold=-0.5, max_tokens=30),
        ),
        "gate embed": plan(
            gate(40, 1), [step(0, "embed", "drop", "ratio", ratio=0.5, of="n", round="ceil")]
        ),
    }


def fits(shape: Config, document: dict[str, Any]) -> bool:
    """Whether a model of this shape accepts the plan."""
    networks = [item for s in document["scores"] for item in s.get("layers", {}).values()]
    networks += [s["select"] for s in document["steps"] if "hidden.weight" in s["select"]]
    if any(item["hidden.weight"].shape[1] != shape["hidden"] for item in networks):
        return False
    needs_all = shape["head"] == "token" and document["steps"]
    return not needs_all or document["output"]["kind"] == "tokens"
