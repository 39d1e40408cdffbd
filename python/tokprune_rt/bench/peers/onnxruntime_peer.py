"""onnxruntime on a graph that its own optimizer fused."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch, PeerSetup
from tokprune_rt.bench.peers.onnx_export import contents, optimized, quantized

onnxruntime = import_module("onnxruntime")


class OnnxruntimePeer:
    """CPU provider, all graph optimizations; int8 with dynamic quantization."""

    def __init__(self, setup: PeerSetup) -> None:
        path = quantized(setup.folder) if setup.precision == "int8" else optimized(setup.folder)
        self.note = contents(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setup.threads
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
