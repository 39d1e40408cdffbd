"""Linear layers in the arithmetic of the engine's reduced precisions, formulas as documented.

bf16  weights rounded to bfloat16; with bfloat16 products, their input as well, and both
      sides of the products of attention (probabilities before they are divided by their sum).
int8  weights in steps of max|w| / 127 per output; inputs in 255 steps per row, between the smallest
      and the largest value and zero; sums of integers, exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Sums of so many products of uint8 and int8 are integers below 2^24: exact in float32, whatever the
# order.
_EXACT = 512


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b, weight [out, in]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Bf16Linear(Linear):
    """Both sides of the product rounded, sums in the dtype of the run."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.bfloat16().to(x.dtype))


@dataclass(frozen=True)
class Int8Linear(Linear):
    """`weight` holds integers, `scale` [out] their worth."""

    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.float().reshape(-1, x.shape[-1])
        low, high = rows.amin(dim=1).clamp(max=0), rows.amax(dim=1).clamp(min=0)
        span = high - low
        steps = torch.where(span > 0, 255 / span, 0)
        zero = (-low * steps).round()
        values = ((rows * steps[:, None]).round() + zero[:, None]).clamp(0, 255)
        sums = -zero[:, None].double() * self.weight.double().sum(dim=1)
        for part, weight in zip(
            values.split(_EXACT, dim=1), self.weight.split(_EXACT, dim=1), strict=True
        ):
            sums += part @ weight.T
        product = sums.float() * ((span / 255)[:, None] * self.scale)
        return (product + self.bias).to(x.dtype).reshape(*x.shape[:-1], -1)


def product(weight: Tensor, bias: Tensor, precision: str, dtype: torch.dtype) -> Linear:
    """A linear layer in `precision`: fp32 (whatever dtype is), bf16-weights, bf16-linear, bf16 or
    int8. The last but one rounds attention as well, which is not of this file."""
    if precision == "fp32":
        return Linear(weight.to(dtype), bias.to(dtype))
    if precision in ("bf16-weights", "bf16-linear", "bf16"):
        kind = Linear if precision == "bf16-weights" else Bf16Linear
        return kind(weight.bfloat16().to(dtype), bias.to(dtype))
    if precision == "int8":
        weight = weight.float()
        top = weight.abs().amax(dim=1)
        inverse = torch.where(top > 0, 127 / top, 0)
        return Int8Linear((weight * inverse[:, None]).round(), bias.float(), top / 127)
    raise ValueError(f"unknown precision {precision!r}")
