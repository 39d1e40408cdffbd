"""Other engines, each imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module, metadata, util
from pathlib import Path
from typing import cast

from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch, Peer, ReferencePeer, pad

__all__ = [
    "PEERS",
    "REFERENCE",
    "Call",
    "FloatArray",
    "PaddedBatch",
    "Peer",
    "ReferencePeer",
    "load_peer",
    "missing",
    "pad",
    "versions",
]

# Name -> (class, what must be installed: the engine itself first, then what converts the model).
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("TorchPeer", ("torch", "transformers")),
    "onnxruntime": ("OnnxruntimePeer", ("onnxruntime", "onnx", "torch", "transformers")),
    "openvino": ("OpenvinoPeer", ("openvino", "onnx", "torch", "transformers")),
    "ctranslate2": ("Ctranslate2Peer", ("ctranslate2", "torch", "transformers")),
}
REFERENCE = "torch"


def missing(name: str) -> str | None:
    """What keeps this engine from running here; None when nothing does."""
    absent = [package for package in PEERS[name][1] if util.find_spec(package) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def load_peer(name: str, folder: Path, threads: int) -> Peer:
    """The engine ``name`` with the model of this folder."""
    module = import_module(f"tokprune_rt.bench.peers.{name}_peer")
    return cast(Peer, getattr(module, PEERS[name][0])(folder, threads))


def versions() -> dict[str, str]:
    """Installed version of everything that the engines use."""
    found = {}
    for package in dict.fromkeys(name for _, needs in PEERS.values() for name in needs):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
