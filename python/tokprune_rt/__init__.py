"""CPU inference for BERT-style encoders with token pruning.

Importing this package is cheap: the extension module, numpy and the tokenizer library are loaded by
the first call that needs them, and torch and transformers are never imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokprune_rt.errors import (
    ModelFormatError,
    PolicyError,
    TokpruneError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from tokprune_rt.exporting import export
    from tokprune_rt.integrations.cross_encoder import CrossEncoder
    from tokprune_rt.integrations.pipelines import pipeline
    from tokprune_rt.integrations.sentence_transformers import SentenceTransformer
    from tokprune_rt.loading import load
    from tokprune_rt.model import Model
    from tokprune_rt.outputs import ForwardOutput, Stats, Trace

__version__ = "0.1.0"

__all__ = [
    "CrossEncoder",
    "ForwardOutput",
    "Model",
    "ModelFormatError",
    "PolicyError",
    "SentenceTransformer",
    "Stats",
    "TokpruneError",
    "Trace",
    "UnsupportedModelError",
    "__version__",
    "export",
    "load",
    "pipeline",
]

_LAZY = {
    "CrossEncoder": "tokprune_rt.integrations.cross_encoder",
    "ForwardOutput": "tokprune_rt.outputs",
    "Model": "tokprune_rt.model",
    "SentenceTransformer": "tokprune_rt.integrations.sentence_transformers",
    "Stats": "tokprune_rt.outputs",
    "Trace": "tokprune_rt.outputs",
    "export": "tokprune_rt.exporting",
    "load": "tokprune_rt.loading",
    "pipeline": "tokprune_rt.integrations.pipelines",
}


def __getattr__(name: str) -> Any:
    module_name = _LAZY.get(name)
    if module_name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module_name), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
