"""Small networks of a policy on padded batches: gates' scores, and counts that a text asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokprune_rt.train.scores import Spec

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
}


def _perceptron(tensors: Mapping[str, Any], activation: str, rows: Tensor) -> Tensor:
    def linear(name: str, rows: Tensor) -> Tensor:
        weight, bias = (
            torch.as_tensor(tensors[f"{name}.{part}"], device=rows.device)
            for part in ("weight", "bias")
        )
        return functional.linear(rows, weight, bias)

    return linear("output", ACTIVATIONS[activation](linear("hidden", rows.float())))


def gate_score(spec: Spec, layer: int, hidden: Tensor, alive: Tensor) -> Tensor:
    """The output of a gate on the states ``hidden`` [B, S, d] before ``layer``."""
    found = _perceptron(spec["layers"][layer], spec["activation"], hidden)
    if found.shape[-1] == 2:
        return found[..., 1] - found[..., 0]
    if spec["softmax"]:
        return torch.softmax(found[..., 0].masked_fill(~alive, -math.inf), dim=1)
    return found[..., 0]


def predicted_ratio(rule: Spec, hidden: Tensor) -> Tensor:
    """Float64 [B]: the ratio that the state of the first token asks for."""
    place = _perceptron(rule, rule["activation"], hidden[:, 0]).argmax(dim=-1)
    return torch.tensor(rule["ratios"], dtype=torch.float64, device=hidden.device)[place]
