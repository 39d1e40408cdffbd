"""Products in the arithmetic of the engine's reduced precisions, formulas as documented.

bf16  weights rounded to bfloat16; with bfloat16 products, their input as well, and both
      sides of the products of attention (probabilities before they are divided by their sum).
int8  weights in steps of max|w| / 127 per output; inputs in 255 steps per row, between the smallest
      and the largest value and zero; sums of integers, exact. Attention of at least 64 rows
      likewise: queries as inputs, each key and each column of the values as weights, probabilities
      in 255 steps, where what rounding takes goes to the key 16 places further.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Sums of so many products of uint8 and int8 are integers below 2^24: exact in float32, whatever the
# order.
_EXACT = 512
_INT8_ATTENTION_ROWS = 64


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
        values, zero, scale = unsigned_rows(x.float().reshape(-1, x.shape[-1]))
        sums = -zero.double() * self.weight.double().sum(dim=1)
        for part, weight in zip(
            values.split(_EXACT, dim=1), self.weight.split(_EXACT, dim=1), strict=True
        ):
            sums += part @ weight.T
        product = sums.float() * (scale * self.scale)
        return (product + self.bias).to(x.dtype).reshape(*x.shape[:-1], -1)


def unsigned_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers from 0 to 255 [..., n], and of each row the zero point and the worth of a step."""
    low = rows.amin(dim=-1, keepdim=True).clamp(max=0)
    span = rows.amax(dim=-1, keepdim=True).clamp(min=0) - low
    steps = torch.where(span > 0, 255 / span, 0)
    zero = (-low * steps).round()
    return ((rows * steps).round() + zero).clamp(0, 255), zero, span / 255


def signed_steps(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Integers from -127 to 127, and the worth of a step along ``dim``."""
    top = values.abs().amax(dim=dim, keepdim=True)
    return (values * torch.where(top > 0, 127 / top, 0)).round(), top / 127


def attention_operands(
    precision: str, alive: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, heads, S, d / heads] as the products see them; alive [B, S]."""
    if precision == "bf16":
        return _bf16(q), _bf16(k), _bf16(v)
    if precision != "int8":
        return q, k, v
    q, k, v = q.clone(), k.clone(), v.clone()
    for b in range(len(alive)):
        rows = torch.nonzero(alive[b]).flatten()
        if len(rows) < _INT8_ATTENTION_ROWS:
            continue
        whole, zero, scale = unsigned_rows(q[b])
        q[b] = (whole - zero) * scale
        k[b] = torch.mul(*signed_steps(k[b], -1))
        v[b][:, rows] = torch.mul(*signed_steps(v[b][:, rows], 1))
    return q, k, v


def attention_probabilities(precision: str, alive: Tensor, parts: Tensor) -> Tensor:
    """Probabilities [B, heads, S, S], the largest of a row 1, as they meet the values."""
    if precision == "bf16":
        return _bf16(parts)
    if precision != "int8":
        return parts
    parts = parts.clone()
    for b in range(len(alive)):
        rows = torch.nonzero(alive[b]).flatten()
        if len(rows) < _INT8_ATTENTION_ROWS:
            continue
        rest = torch.zeros_like(parts[b][..., :16])
        for columns in rows.split(16):
            exact = parts[b][..., columns] * 255 + rest[..., : len(columns)]
            rest = exact - exact.round()
            parts[b][..., columns] = exact.round().clamp(0, 255) / 255
    return parts


def _bf16(values: Tensor) -> Tensor:
    return values.bfloat16().to(values.dtype)


def product(weight: Tensor, bias: Tensor, precision: str, dtype: torch.dtype) -> Linear:
    """A linear layer in `precision`: fp32 (whatever dtype is), bf16-weights, bf16-linear, bf16 or
    int8. The last two round attention as well."""
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
