"""Embedding models in training: from folders, with the runtime's vectors, into folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from tokprune_rt.files import atomic_folder
from tokprune_rt.loader import SentenceSetup, describe_model
from tokprune_rt.loader.weights import load_dense
from tokprune_rt.policy import JSON_NAME, TENSORS_NAME
from tokprune_rt.train.merging import MergingEncoder, Rows
from tokprune_rt.train.networks import ACTIVATIONS

_POOLING = ("mean", "cls")
# Weights in other forms, which would be those of the model before.
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".h5", ".msgpack", ".ot", ".onnx")
_EXPORTS = ("onnx", "openvino", "__pycache__", JSON_NAME, TENSORS_NAME)


class Embedder(MergingEncoder):
    """The embedding model in ``folder``: its encoder, which learns, pooling and Dense modules,
    which stay. Vectors have the length they have; a Normalize module is left out.

    Raises ValueError for a model without embeddings, and for a pooling other than mean and cls.
    """

    def __init__(self, folder: Path) -> None:
        _, self._setup = describe_model(folder)
        check_embedder(folder, self._setup)
        model = AutoModel.from_pretrained(self._setup.encoder_folder, dtype=torch.float32)
        for module in model.modules():
            # A student of its own vectors learns nothing from noise.
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        # They meet no other token, and words that the texts lack keep their place among the others.
        model.base_model.embeddings.requires_grad_(False)
        super().__init__(model)
        self._over = "kept"
        self._dense: list[tuple[Tensor, Tensor, str]] = []
        for layer in self._setup.dense:
            sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
            tensors = load_dense(layer.folder, sizes, bias=layer.bias)
            weight, bias = torch.tensor(tensors["weight"]), torch.tensor(tensors["bias"])
            self._dense.append((weight, bias, layer.activation))

    @contextmanager
    def choosing(self, chooser: Any) -> Iterator[None]:
        """See `MergingEncoder.choosing`."""
        self._over = "kept" if chooser is None else chooser.over
        with super().choosing(chooser):
            yield

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Any, Rows]:
        """One forward pass; the output has vectors, float32 [B, e], in the place of logits. The
        note "state" of the pass has the rows [B, S, d] that they are made of."""
        output, run = super().run(inputs)
        hidden = run.notes["state"] = output.last_hidden_state.float()
        found = [self._pooled(mode, hidden, run) for mode in self._setup.pooling]
        vectors = torch.cat(found, dim=-1)
        for weight, bias, activation in self._dense:
            dense = functional.linear(vectors, weight.to(vectors), bias.to(vectors))
            vectors = ACTIVATIONS[activation](dense)
        return SequenceClassifierOutput(logits=vectors), run

    def _pooled(self, mode: str, hidden: Tensor, run: Rows) -> Tensor:
        if mode == "cls":
            return hidden[:, 0]
        weight = run.size * run.alive if self._over == "size" else run.alive.to(hidden.dtype)
        return (hidden * weight[..., None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)


def check_embedder(folder: Path, setup: SentenceSetup) -> None:
    """ValueError unless the model has embeddings that `Embedder` can compute."""
    if not setup.pooling:
        raise ValueError(f"{folder} has a task head and no embeddings; distil an embedding model")
    for mode in setup.pooling:
        if mode not in _POOLING:
            raise ValueError(
                f"{folder}: pooling {mode!r} cannot be distilled; found {setup.pooling}, "
                f"available: {', '.join(_POOLING)}"
            )


def is_stale(name: str) -> bool:
    """Whether a file or folder of a model is not true of the model with other weights."""
    return name.startswith(".") or name in _EXPORTS or name.endswith(_WEIGHTS)


@contextmanager
def model_copy(out: Path, source: Path, model: PreTrainedModel) -> Iterator[Path]:
    """A copy of the model folder ``source`` with the encoder's new weights, and without a policy,
    which takes the name ``out`` when the block has succeeded."""
    _, setup = describe_model(source)
    inside = setup.encoder_folder.relative_to(source)
    dense = {str(layer.folder) for layer in setup.dense}

    def ignored(folder: str, names: list[str]) -> set[str]:
        # A Dense module's weights are its own, and stay.
        return set() if folder in dense else {name for name in names if is_stale(name)}

    with atomic_folder(out) as work:
        shutil.copytree(source, work, ignore=ignored, dirs_exist_ok=True)
        nn.Module.to(model, "cpu")
        model.save_pretrained(work / inside)
        # Weights are written readable by their owner alone.
        for root, _, names in os.walk(work):
            for name in names:
                path = Path(root, name)
                path.chmod((work.stat().st_mode & 0o666) | 0o200)
        yield work
