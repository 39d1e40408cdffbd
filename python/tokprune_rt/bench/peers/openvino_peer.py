"""OpenVINO's CPU plugin."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch
from tokprune_rt.bench.peers.onnx_export import exported

openvino = import_module("openvino")


class OpenvinoPeer:
    """Precision fp32, latency hint; compiled for the shape of the input where it is one shape."""

    note = "f32, LATENCY, static shapes where there is one shape"

    def __init__(self, folder: Path, threads: int) -> None:
        self._core = openvino.Core()
        self._path = exported(folder)
        self._config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._dynamic: Any = None

    def _compiled(self, batches: Sequence[PaddedBatch]) -> Any:
        if len(batches) == 1:
            model = self._core.read_model(self._path)
            shape = list(batches[0].ids.shape)
            model.reshape({0: shape, 1: shape})
            return self._core.compile_model(model, "CPU", self._config)
        if self._dynamic is None:
            self._dynamic = self._core.compile_model(self._path, "CPU", self._config)
        return self._dynamic

    def prepare(self, batches: Sequence[PaddedBatch]) -> Call:
        # One request for each batch, because a request's result lies in memory of its own.
        compiled = self._compiled(batches)
        requests = [compiled.create_infer_request() for _ in batches]
        inputs = [[item.ids, item.mask] for item in batches]

        def call() -> list[FloatArray]:
            return [
                request.infer(item, share_inputs=True, share_outputs=True)[0]
                for request, item in zip(requests, inputs, strict=True)
            ]

        return call
