"""onnxruntime on a graph that its own optimizer fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch
from tokprune_rt.bench.peers.onnx_export import optimized

onnxruntime = import_module("onnxruntime")

_FUSED = ("Attention", "MultiHeadAttention", "BiasGelu", "SkipLayerNormalization")


class OnnxruntimePeer:
    """CPU provider, all graph optimizations."""

    def __init__(self, folder: Path, threads: int) -> None:
        onnx = import_module("onnx")
        path = optimized(folder)
        nodes = Counter(node.op_type for node in onnx.load(path).graph.node)
        found = [f"{nodes[kind]} {kind}" for kind in _FUSED if nodes[kind]]
        self.note = f"fused: {', '.join(found) or 'nothing'}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def prepare(self, batches: Sequence[PaddedBatch]) -> Call:
        feeds = [{"input_ids": item.ids, "attention_mask": item.mask} for item in batches]

        def call() -> list[FloatArray]:
            return [self._session.run(["hidden"], feed)[0] for feed in feeds]

        return call
