"""sentence-transformers and its backends, as the benchmarks compare with them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

BACKENDS = ("torch", "onnx", "openvino")


def backend_options(backend: str, threads: int) -> dict[str, Any]:
    """The ``model_kwargs`` that give a backend its threads, in fp32."""
    if backend == "onnx":
        session = import_module("onnxruntime").SessionOptions()
        session.intra_op_num_threads = threads
        return {"provider": "CPUExecutionProvider", "session_options": session, "export": True}
    if backend == "openvino":
        hints = {
            "INFERENCE_NUM_THREADS": str(threads),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        return {"ov_config": hints, "export": True}
    return {}


def installed(*names: str) -> str:
    """Each package with its version."""

    def one(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name}: none"

    return ", ".join(one(name) for name in names)
