"""Weights of a Hugging Face encoder behind one small interface.

Reads the submodules of BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT and MPNet models (bare
or with a task head) and exposes them as plain tensors of the requested dtype. No forward method of
the model is called, so the arithmetic stays visible in `masked.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .rounding import Linear, product

_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation over the last axis."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Layer:
    """One post-LN encoder layer."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    attention_norm: LayerNorm
    ffn_in: Linear
    activation: Callable[[Tensor], Tensor]
    ffn_out: Linear
    ffn_norm: LayerNorm


@dataclass(frozen=True)
class Encoder:
    """Everything the reference needs of a model.

    `padding_idx` is the pad token id when position ids count from pad + 1 (and a pad id inside a
    sequence keeps position row pad), else None for plain 0, 1, 2, ...
    """

    heads: int
    word: Tensor
    position: Tensor
    token_type: Tensor | None
    norm: LayerNorm
    project: Linear | None
    padding_idx: int | None
    layers: list[Layer]
    relative_bias: Callable[[Tensor], Tensor] | None

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Embeddings [n, d] of one unpadded sequence of ids [n]."""
        x = self.word[input_ids] + self.position[self._position_ids(input_ids)]
        if self.token_type is not None:
            x = x + self.token_type[token_type_ids]
        x = self.norm(x)
        return x if self.project is None else self.project(x)

    def _position_ids(self, input_ids: Tensor) -> Tensor:
        if self.padding_idx is None:
            return torch.arange(len(input_ids))
        real = (input_ids != self.padding_idx).long()
        return torch.cumsum(real, dim=0) * real + self.padding_idx


def read_encoder(model: nn.Module, dtype: torch.dtype, precision: str = "fp32") -> Encoder:
    """The encoder of `model` in `dtype`, its layers' products in `precision` (see rounding.py).

    ValueError for an unknown model type.
    """
    config: Any = model.config
    model_type: str = config.model_type
    base: Any = getattr(model, str(model.base_model_prefix), model)

    def linear(module: Any, of_layer: bool = True) -> Linear:
        rounding = precision if of_layer else "fp32"
        return product(module.weight.detach(), module.bias.detach(), rounding, dtype)

    def norm(module: Any) -> LayerNorm:
        return LayerNorm(
            module.weight.detach().to(dtype), module.bias.detach().to(dtype), module.eps
        )

    def bert_layer(layer: Any) -> Layer:
        attention = layer.attention
        if model_type == "mpnet":
            attn = attention.attn
            q, k, v, o, attention_norm = attn.q, attn.k, attn.v, attn.o, attention.LayerNorm
        else:
            this = attention.self
            q, k, v = this.query, this.key, this.value
            o, attention_norm = attention.output.dense, attention.output.LayerNorm
        return Layer(
            linear(q),
            linear(k),
            linear(v),
            linear(o),
            norm(attention_norm),
            linear(layer.intermediate.dense),
            layer.intermediate.intermediate_act_fn,
            linear(layer.output.dense),
            norm(layer.output.LayerNorm),
        )

    def distilbert_layer(layer: Any) -> Layer:
        attention, ffn = layer.attention, layer.ffn
        return Layer(
            linear(attention.q_lin),
            linear(attention.k_lin),
            linear(attention.v_lin),
            linear(attention.out_lin),
            norm(layer.sa_layer_norm),
            linear(ffn.lin1),
            ffn.activation,
            linear(ffn.lin2),
            norm(layer.output_layer_norm),
        )

    relative_bias: Callable[[Tensor], Tensor] | None = None
    if model_type == "distilbert":
        layers = [distilbert_layer(layer) for layer in base.transformer.layer]
    elif model_type in {"bert", "electra"} | _OFFSET_POSITIONS:
        layers = [bert_layer(layer) for layer in base.encoder.layer]
        if model_type == "mpnet":
            table = base.encoder.relative_attention_bias.weight.detach().to(dtype)
            bucket = base.encoder.relative_position_bucket

            def relative_bias(distance: Tensor) -> Tensor:
                """Bias [..., heads] of integer distances key position - query position."""
                return table[bucket(distance)]

    else:
        raise ValueError(f"the reference does not know the model type {model_type!r}")

    embeddings = base.embeddings
    types = getattr(embeddings, "token_type_embeddings", None)
    project = getattr(base, "embeddings_project", None)
    return Encoder(
        heads=config.num_attention_heads,
        word=embeddings.word_embeddings.weight.detach().to(dtype),
        position=embeddings.position_embeddings.weight.detach().to(dtype),
        token_type=None if types is None else types.weight.detach().to(dtype),
        norm=norm(embeddings.LayerNorm),
        project=None if project is None else linear(project, of_layer=False),
        padding_idx=embeddings.padding_idx if model_type in _OFFSET_POSITIONS else None,
        layers=layers,
        relative_bias=relative_bias,
    )
