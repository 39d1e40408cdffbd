"""Other engines, each imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata, util
from typing import cast

from tokprune_rt.bench.peers.base import (
    Calibration,
    Call,
    FloatArray,
    PaddedBatch,
    Peer,
    PeerSetup,
    ReferencePeer,
    pad,
)

__all__ = [
    "PEERS",
    "REFERENCE",
    "Calibration",
    "Call",
    "FloatArray",
    "PaddedBatch",
    "Peer",
    "PeerKind",
    "PeerSetup",
    "ReferencePeer",
    "load_peer",
    "missing",
    "pad",
    "versions",
]


@dataclass(frozen=True)
class PeerKind:
    """One engine.

    Attributes:
        class_name: in the module called after the engine.
        needs: packages: the engine itself first, then what converts the model.
        precisions: those it runs at -> packages that takes besides.
    """

    class_name: str
    needs: tuple[str, ...]
    precisions: dict[str, tuple[str, ...]]


PEERS: dict[str, PeerKind] = {
    "torch": PeerKind("TorchPeer", ("torch", "transformers"), {"fp32": (), "bf16": ()}),
    "onnxruntime": PeerKind(
        "OnnxruntimePeer",
        ("onnxruntime", "onnx", "torch", "transformers"),
        {"fp32": (), "int8": ()},
    ),
    "openvino": PeerKind(
        "OpenvinoPeer",
        ("openvino", "onnx", "torch", "transformers"),
        {"fp32": (), "bf16": (), "int8": ("nncf",)},
    ),
    "ctranslate2": PeerKind(
        "Ctranslate2Peer", ("ctranslate2", "torch", "transformers"), {"fp32": (), "int8": ()}
    ),
}
REFERENCE = "torch"


def missing(name: str, precision: str = "fp32") -> str | None:
    """What keeps this engine from running here at this precision; None when nothing does."""
    kind = PEERS[name]
    if precision not in kind.precisions:
        return f"does not run at {precision} on CPUs"
    needs = (*kind.needs, *kind.precisions[precision])
    absent = [package for package in needs if util.find_spec(package) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def load_peer(name: str, setup: PeerSetup) -> Peer:
    """The engine ``name`` with a model."""
    module = import_module(f"tokprune_rt.bench.peers.{name}_peer")
    return cast(Peer, getattr(module, PEERS[name].class_name)(setup))


def _packages() -> Iterator[str]:
    for kind in PEERS.values():
        yield from kind.needs
        for extra in kind.precisions.values():
            yield from extra


def versions() -> dict[str, str]:
    """Installed version of everything that the engines use."""
    found = {}
    for package in dict.fromkeys(_packages()):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
