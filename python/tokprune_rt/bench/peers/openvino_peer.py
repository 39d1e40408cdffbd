"""OpenVINO's CPU plugin."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from tokprune_rt.bench.cpu import cpu_flags
from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch, PeerSetup
from tokprune_rt.bench.peers.onnx_export import calibrated, exported

openvino = import_module("openvino")


def _has_tiles() -> bool:
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL")
    return "amx_bf16" in cpu_flags() and (cap == "ALL" or "AMX" in cap)


class OpenvinoPeer:
    """Latency hint; compiled for the shape of the input where it is one shape.

    int8 is nncf's quantization after training, with static ranges. What that leaves in floating
    point runs in bf16 where the CPU multiplies it in tiles, else in fp32, which is faster there.
    """

    def __init__(self, setup: PeerSetup) -> None:
        self._core = openvino.Core()
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": setup.threads,
        }
        if setup.precision == "int8":
            self._path = calibrated(setup.folder, setup.calibration)
            hint = "bf16" if _has_tiles() else "f32"
            kind = f"nncf TRANSFORMER, calibrated on {setup.calibration.name}, the rest {hint}"
        else:
            self._path = exported(setup.folder)
            kind = hint = {"fp32": "f32", "bf16": "bf16"}[setup.precision]
        self._config["INFERENCE_PRECISION_HINT"] = hint
        self.note = f"{kind}, LATENCY, static shapes where there is one shape"
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
