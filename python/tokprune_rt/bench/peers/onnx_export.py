"""ONNX graphs of an encoder, as exported and as onnxruntime's optimizer rewrites them."""

from __future__ import annotations

import json
import logging
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tokprune_rt.bench.peers.base import converted
from tokprune_rt.bench.peers.torch_peer import load_bert

OPSET = 17
_GRAPH = "model.onnx"


class _Encoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=torch.zeros_like(input_ids),
            return_dict=False,
        )[0]


def _version() -> str:
    return f"{torch.__version__}:{import_module('transformers').__version__}"


def exported(folder: Path) -> Path:
    """The graph as torch exports it, inputs input_ids and attention_mask of any size."""

    def convert(target: Path) -> None:
        # Attention written out is what onnxruntime's optimizer recognises.
        model = load_bert(folder, "eager")
        ids = torch.randint(1000, 2000, (2, 16))
        sizes = {0: "batch", 1: "tokens"}
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Encoder(model),
                (ids, torch.ones_like(ids)),
                target / _GRAPH,
                input_names=["input_ids", "attention_mask"],
                output_names=["hidden"],
                dynamic_axes=dict.fromkeys(("input_ids", "attention_mask", "hidden"), sizes),
                opset_version=OPSET,
                dynamo=False,
            )

    return converted(folder, "onnx", _version(), convert) / _GRAPH


def optimized(folder: Path) -> Path:
    """The exported graph after onnxruntime's transformer optimizer."""
    onnxruntime = import_module("onnxruntime")

    def convert(target: Path) -> None:
        optimizer = import_module("onnxruntime.transformers.optimizer")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        level = logging.getLogger("onnxruntime.transformers").level
        logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
        try:
            model = optimizer.optimize_model(
                str(exported(folder)),
                model_type="bert",
                num_heads=config["num_attention_heads"],
                hidden_size=config["hidden_size"],
                opt_level=0,
            )
        finally:
            logging.getLogger("onnxruntime.transformers").setLevel(level)
        model.save_model_to_file(str(target / _GRAPH))

    version = f"{_version()}:{onnxruntime.__version__}"
    return converted(folder, "onnxruntime", version, convert) / _GRAPH
