"""ONNX graphs of an encoder: as exported, as onnxruntime's optimizer rewrites them, quantized."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections import Counter
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tokprune_rt.bench.cpu import cpu_flags
from tokprune_rt.bench.peers.base import Calibration, converted, pad
from tokprune_rt.bench.peers.torch_peer import load_bert

OPSET = 17
_GRAPH = "model.onnx"
_OPENVINO = "model.xml"
_CONTENTS = "contents.txt"
_FUSED = (
    "Attention",
    "QAttention",
    "MultiHeadAttention",
    "BiasGelu",
    "SkipLayerNormalization",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
)


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


def _describe(folder: Path) -> None:
    onnx = import_module("onnx")
    nodes = Counter(node.op_type for node in onnx.load(folder / _GRAPH).graph.node)
    found = [f"{nodes[kind]} {kind}" for kind in _FUSED if nodes[kind]]
    text = f"fused: {', '.join(found) or 'nothing'}"
    (folder / _CONTENTS).write_text(text, encoding="utf-8")


def contents(graph: Path) -> str:
    """What the nodes of a graph of `optimized` or `quantized` are, for readers."""
    return graph.with_name(_CONTENTS).read_text(encoding="utf-8")


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
        _describe(target)

    version = f"{_version()}:{onnxruntime.__version__}"
    return converted(folder, "onnxruntime-fused", version, convert) / _GRAPH


def quantized(folder: Path) -> Path:
    """The optimized graph with int8 weights, one scale for each column, and dynamic ranges."""
    reduce = not cpu_flags() & {"avx512_vnni", "avx_vnni"}
    onnx, onnxruntime = import_module("onnx"), import_module("onnxruntime")

    def convert(target: Path) -> None:
        quantization = import_module("onnxruntime.quantization")
        logger = logging.getLogger()
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            quantization.quantize_dynamic(
                optimized(folder),
                target / _GRAPH,
                per_channel=True,
                # Without these instructions sums of two products saturate at 16 bits.
                reduce_range=reduce,
                weight_type=quantization.QuantType.QInt8,
                # Shape inference stops at the fused nodes.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        finally:
            logger.setLevel(level)
        _describe(target)

    version = f"{_version()}:{onnxruntime.__version__}:{reduce}"
    return converted(folder, "onnxruntime-int8", version, convert) / _GRAPH


def calibrated(folder: Path, calibration: Calibration) -> Path:
    """The exported graph as OpenVINO's, with int8 weights and static ranges of activations."""
    nncf, openvino = import_module("nncf"), import_module("openvino")

    def convert(target: Path) -> None:
        batches = [pad([ids]) for ids in calibration.make()]
        inputs = [{"input_ids": item.ids, "attention_mask": item.mask} for item in batches]
        level = logging.getLogger("nncf").level
        nncf.set_log_level(logging.ERROR)
        try:
            with redirect_stdout(io.StringIO()):
                model = nncf.quantize(
                    openvino.Core().read_model(exported(folder)),
                    nncf.Dataset(inputs),
                    model_type=nncf.ModelType.TRANSFORMER,
                    subset_size=len(inputs),
                )
        finally:
            nncf.set_log_level(level)
        openvino.save_model(model, target / _OPENVINO, compress_to_fp16=False)

    version = f"{_version()}:{openvino.__version__}:{nncf.__version__}:{calibration.name}"
    return converted(folder, "openvino-int8", version, convert) / _OPENVINO
