"""Writing a model folder that sentence-transformers loads as well."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokprune_rt.loader.config import read_json
from tokprune_rt.loader.tokenizer_files import TOKENIZER_FILES
from tokprune_rt.loader.weights import WeightFiles
from tokprune_rt.model import Model

_MODULES = "modules.json"
_SENTENCE = "config_sentence_transformers.json"
_LIMITS = "sentence_bert_config.json"
# What sentence-transformers 6 has to know of a transformer that ends in scores.
_SCORES = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}


def save_model(model: Model, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Write the model's folder to ``path``, with ``settings`` in its sentence configuration.

    Every file appears complete; files that are already there and have another name stay. A pruning
    policy in use is written beside the weights; software that does not know it runs dense.
    Raises NotADirectoryError when ``path`` is a file.
    """
    target = Path(path)
    if target.is_file():
        raise NotADirectoryError(f"{target} is a file; give the name of a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        copy = Path(work) / "model"
        shutil.copytree(model.folder, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        _write_settings(model, copy, settings)
        if model.policy is not None:
            model.policy.save(copy)
        shutil.copytree(copy, target, dirs_exist_ok=True, copy_function=os.replace)


def save_encoder(model: Model, path: str | os.PathLike[str]) -> None:
    """Write only the encoder's own files and the tokenizer's, and the pruning policy in use."""
    target, source = Path(path), model.setup.encoder_folder
    target.mkdir(parents=True, exist_ok=True)
    files = [source / name for name in ("config.json", *TOKENIZER_FILES)]
    files += WeightFiles(source).files()
    for file in files:
        copy = target / file.name
        if file.is_file() and not (copy.exists() and copy.samefile(file)):
            shutil.copy(file, copy)
    limits = {"max_seq_length": model.max_seq_length, "do_lower_case": model.setup.do_lower_case}
    _write(target / _LIMITS, limits)
    if model.policy is not None:
        model.policy.save(target)


def _write_settings(model: Model, folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / _SENTENCE
    _write(path, (read_json(path) if path.is_file() else {}) | dict(settings))
    new = not (folder / _MODULES).is_file()
    encoder = folder / model.setup.encoder_folder.relative_to(model.folder)
    path = encoder / _LIMITS
    known = read_json(path) if path.is_file() else {"do_lower_case": model.setup.do_lower_case}
    if new and not model.setup.pooling:
        known |= _SCORES
    _write(path, known | {"max_seq_length": model.max_seq_length})
    if new:
        _write_modules(model, folder)


def _write_modules(model: Model, folder: Path) -> None:
    kinds = {"": "Transformer"}
    if model.setup.pooling:
        kinds["1_Pooling"] = "Pooling"
        (folder / "1_Pooling").mkdir(exist_ok=True)
        _write(
            folder / "1_Pooling" / "config.json",
            {
                "word_embedding_dimension": model.config.hidden,
                "pooling_mode_mean_tokens": True,
            },
        )
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": place,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (place, kind) in enumerate(kinds.items())
    ]
    _write(folder / _MODULES, modules)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
