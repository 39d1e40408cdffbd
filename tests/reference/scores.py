"""Token scores: higher means keep.

Attention scores come in two stages. `attention_statistic` turns one layer's probabilities into one
number per token; every query row alive when that layer's attention ran votes. `normalise` is
applied when a step uses the statistic, over the tokens alive at that moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ATTENTION = ("attn_col", "attn_cls", "attn_cum", "row_entropy", "col_entropy")
NOISE_FREE = ("table", "random")


def reads_attention(spec: Mapping[str, Any]) -> bool:
    """Whether the score needs a statistic of the attention."""
    return spec["kind"] in ATTENTION or spec.get("attention", 0) > 0


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
}
PARTS = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")

_MASK64 = (1 << 64) - 1


def attention_statistic(
    spec: Mapping[str, Any], probs: Tensor, values: Tensor, voters: Tensor, segments: Tensor
) -> Tensor:
    """One number per key, before any normalisation.

    probs [B, H, S, S] (dead keys exactly 0), values [B, H, S, d/H], voters bool [B, S] (query rows
    alive at this attention), segments int [B, S]. Returns [B, S].
    """
    if spec["kind"] == "similarity":
        return (probs * voters[:, None, :, None]).sum(dim=2).mean(dim=1)
    if spec["kind"] == "attn_cls":
        first = probs[:, :, 0, :]
        if spec["value_norm"]:
            first = first * values.norm(dim=-1)
        return first.mean(dim=1)

    if spec["kind"] == "row_entropy":
        return spec["sign"] * _over_heads(spec, torch.special.entr(probs).sum(dim=3))
    if spec["kind"] == "col_entropy":
        counted = torch.special.entr(probs) * voters[:, None, :, None]
        return spec["sign"] * _over_heads(spec, counted.sum(dim=2))
    rows = voters.clone()
    if spec["query"] == "first":
        rows[:, 1:] = False
    elif spec["query"] == "segment":
        rows &= segments == spec["segment"]
    elif spec["query"] != "alive":
        raise ValueError(f"unknown query rows {spec['query']!r}")
    counted = probs * rows[:, None, :, None]
    if not spec["diagonal"]:
        counted = counted * (1 - torch.eye(probs.shape[-1], dtype=probs.dtype))
    return _over_heads(spec, counted.sum(dim=2))


def _over_heads(spec: Mapping[str, Any], per_head: Tensor) -> Tensor:
    if spec["heads"] == "mean":
        return per_head.mean(dim=1)
    if spec["heads"] == "sum":
        return per_head.sum(dim=1)
    if spec["heads"] == "max":
        return per_head.amax(dim=1)
    raise ValueError(f"unknown head reduction {spec['heads']!r}")


def normalise(
    spec: Mapping[str, Any], column: np.ndarray, protected: np.ndarray, n0: int
) -> np.ndarray:
    """Apply the norm of an `attn_col` score; the other kinds have none.

    column float64 [n] and protected bool [n] of the alive tokens, n0 the input length.
    """
    if spec["kind"] != "attn_col" or spec["norm"] == "none":
        return column
    if spec["norm"] == "alive":
        return column / len(column)
    if spec["norm"] == "const":
        return column / spec["n"]
    if spec["norm"] == "n0":
        return column / n0
    if spec["norm"] == "unprotected":
        rest = column[~protected]
        mean = rest.mean() if len(rest) else 0.0
        # Nothing voted, or nothing can be dropped: every choice of scale gives the same decision.
        return column / mean if mean > 0 else column
    raise ValueError(f"unknown norm {spec['norm']!r}")


def table_scores(
    spec: Mapping[str, Any], token_ids: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """T[token id] or T[original position] of every token, float64 [n]."""
    if spec["index"] not in ("token", "position"):
        raise ValueError(f"unknown table index {spec['index']!r}")
    index = token_ids if spec["index"] == "token" else positions
    return np.asarray(spec["table"], dtype=np.float32)[index].astype(np.float64)


def perceptron(spec: Mapping[str, Any], activation: str, states: Tensor) -> Tensor:
    """Output [n, o] of a network with one hidden layer, of states [n, d], in their dtype."""
    tensors = {key: torch.from_numpy(np.asarray(spec[key])).to(states.dtype) for key in PARTS}
    inner = _ACTIVATIONS[activation](states @ tensors["hidden.weight"].T + tensors["hidden.bias"])
    return inner @ tensors["output.weight"].T + tensors["output.bias"]


def gate_scores(spec: Mapping[str, Any], states: Tensor, layer: int) -> np.ndarray:
    """Score float64 [n] of the alive tokens of one sequence from their states [n, d]."""
    logits = perceptron(spec["layers"][layer], spec["activation"], states)
    score = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
    if spec["softmax"]:
        score = torch.softmax(score, dim=0)
    return score.numpy().astype(np.float64)


def predicted_ratio(spec: Mapping[str, Any], first: Tensor) -> tuple[dict[str, Any], float]:
    """The selection by the ratio that a network chooses, and how close it was to another one.

    first [1, d] is the state of the first token. The distance of the two best outputs counts
    relative to the mean size of the outputs.
    """
    outputs = perceptron(spec, spec["activation"], first)[0].numpy().astype(np.float64)
    best = int(np.argmax(outputs))
    limits = {key: spec[key] for key in ("min_tokens", "max_tokens")}
    ratio = {"kind": "ratio", "ratio": spec["ratios"][best], "of": "n", "round": "ceil"}
    if len(outputs) == 1:
        return limits | ratio, math.inf
    second, first_of = np.sort(outputs)[-2:]
    return limits | ratio, float((first_of - second) / np.abs(outputs).mean())


def _mix(x: int) -> int:
    """The finaliser of splitmix64 on x + golden gamma, in 64-bit wrap-around arithmetic."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def random_scores(
    spec: Mapping[str, Any], input_ids: Sequence[int], positions: np.ndarray, layer: int
) -> np.ndarray:
    """Uniform [0, 1) scores that depend on the sequence's content, the layer and the position."""
    h = spec["seed"] & _MASK64
    for token in input_ids:
        h = _mix(h ^ int(token))
    of_layer = _mix(h ^ (layer + 1))
    return np.array([(_mix(of_layer ^ int(j)) >> 40) * 2.0**-24 for j in positions])
