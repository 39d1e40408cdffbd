"""Random-weight models of published shapes, as ordinary Hugging Face folders."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REAL_MODEL = "all-MiniLM-L6-v2"

# Part of the folders' names; goes up when what is written changes.
_VERSION = 1
_SEED = 20240229
_VOCAB = 30522
_POSITIONS = 512
_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
_READY = "tokenizer_config.json"


@dataclass(frozen=True)
class Shape:
    """The size of a BERT encoder."""

    name: str
    label: str
    layers: int
    hidden: int
    heads: int
    intermediate: int


SHAPES = {
    "minilm": Shape("minilm", "MiniLM-L6", 6, 384, 12, 1536),
    "bert-base": Shape("bert-base", "BERT-base", 12, 768, 12, 3072),
}


def cache_folder() -> Path:
    """Where models and their conversions are kept between runs of this user.

    Raises PermissionError when the folder belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"tokprune-bench-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


def model_folder(shape: Shape) -> Path:
    """The folder of the random-weight model of this shape; written by the first call."""
    folder = cache_folder() / f"{shape.name}-{_VERSION}"
    if not (folder / _READY).exists():
        draft = Path(tempfile.mkdtemp(dir=cache_folder()))
        try:
            _write(draft, shape)
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write(folder: Path, shape: Shape) -> None:
    from safetensors.numpy import save_file

    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": _POSITIONS,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": _SPECIAL["[PAD]"],
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": _VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    words = [f"token{i}" for i in range(_VOCAB)]
    for word, place in _SPECIAL.items():
        words[place] = word
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    save_file(_tensors(shape), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = {"tokenizer_class": "BertTokenizer", "model_max_length": _POSITIONS}
    (folder / _READY).write_text(json.dumps(tokenizer), encoding="utf-8")


def _tensors(shape: Shape) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(_SEED)
    width, inner = shape.hidden, shape.intermediate
    tensors: dict[str, NDArray[np.float32]] = {}

    def normal(name: str, *size: int, scale: float = 0.02) -> None:
        tensors[name] = rng.standard_normal(size, dtype=np.float32) * np.float32(scale)

    def linear(name: str, rows: int, columns: int) -> None:
        # Queries and keys of this scale spread the attention about as trained ones do; the 0.02 of
        # an untrained model would leave it uniform and every importance score a tie.
        steep = name.endswith(("query", "key"))
        normal(f"{name}.weight", rows, columns, scale=1.5 / columns**0.5 if steep else 0.02)
        normal(f"{name}.bias", rows)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = np.zeros(width, np.float32)

    normal("embeddings.word_embeddings.weight", _VOCAB, width)
    normal("embeddings.position_embeddings.weight", _POSITIONS, width)
    normal("embeddings.token_type_embeddings.weight", 2, width)
    norm("embeddings.LayerNorm")
    for i in range(shape.layers):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, width)
        linear(f"{layer}.output.dense", width, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", width, width)
    return tensors
