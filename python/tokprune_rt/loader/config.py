"""config.json -> EncoderConfig, refusing what the runtime does not compute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tokprune_rt.errors import ModelFormatError, UnsupportedModelError
from tokprune_rt.loader.families import (
    FAMILIES,
    TASK_SUFFIXES,
    Family,
    Task,
    supported_architectures,
)

CoreConfig = dict[str, int | float | bool | str | Sequence[str]]


@dataclass(frozen=True)
class EncoderConfig:
    """What config.json says about the encoder and its head."""

    family: Family
    architecture: str
    task: Task
    layers: int
    hidden: int
    heads: int
    intermediate: int
    embedding_size: int
    vocab_size: int
    max_positions: int
    position_rows: int
    position_offset: int
    position_pad_id: int
    type_vocab_size: int
    activation: str
    layer_norm_eps: float
    relative_buckets: int
    labels: tuple[str, ...]
    problem_type: str | None

    @property
    def head(self) -> str:
        """``"none"``, ``"first"`` or ``"token"``."""
        head = self.family.head(self.task)
        return head.kind if head else "none"

    def core_config(self, pooling: Sequence[str], dense_activations: Sequence[str]) -> CoreConfig:
        """The dictionary that the extension's Encoder takes."""
        head = self.family.head(self.task)
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            "heads": self.heads,
            "intermediate": self.intermediate,
            "embedding_size": self.embedding_size,
            "vocab_size": self.vocab_size,
            "max_positions": self.max_positions,
            "position_offset": self.position_offset,
            "position_pad_id": self.position_pad_id,
            "type_vocab_size": self.type_vocab_size,
            "activation": self.activation,
            "layer_norm_eps": self.layer_norm_eps,
            "relative_attention": bool(self.family.relative_bias),
            "pooling": list(pooling),
            "dense_activations": list(dense_activations),
            "head": self.head,
            "head_activation": head.dense_activation if head else "",
        }


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ModelFormatError names the file when it is missing or malformed."""
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_value(path: Path) -> Any:
    """Read any JSON value; ModelFormatError names the file when it is missing or malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelFormatError(f"{path}: the file is missing") from None
    except (OSError, UnicodeDecodeError) as err:
        raise ModelFormatError(f"{path}: cannot be read ({err})") from err
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as err:
        raise ModelFormatError(f"{path}: not valid JSON ({err})") from err


@cache
def activation_names() -> Mapping[str, str]:
    """Hugging Face activation name -> the runtime's kernel name."""
    from tokprune_rt import _core

    return {name: kernel for kernel, names in _core.activations().items() for name in names}


def _number(raw: Mapping[str, Any], key: str, path: Path, minimum: int, default: Any = None) -> int:
    value = raw.get(key, default)
    if value is None:
        raise ModelFormatError(f"{path}: {key} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ModelFormatError(
            f"{path}: {key} must be an integer of at least {minimum}, found {value!r}"
        )
    return value


def _refuse_features(raw: Mapping[str, Any], path: Path) -> None:
    refused = {
        "is_decoder": "decoder attention",
        "add_cross_attention": "cross attention",
        "pruned_heads": "pruned heads",
        "quantization_config": "quantised weights",
        "auto_map": "custom modelling code",
    }
    for key, meaning in refused.items():
        if raw.get(key):
            raise UnsupportedModelError(
                f"{path}: {key}={raw[key]!r} ({meaning}) is not supported by this runtime"
            )
    kind = raw.get("position_embedding_type", "absolute")
    if kind not in (None, "absolute"):
        raise UnsupportedModelError(
            f"{path}: position_embedding_type={kind!r} is not supported, only 'absolute' is"
        )


def _architecture(raw: Mapping[str, Any], path: Path) -> tuple[Family, str, Task]:
    model_type = raw.get("model_type")
    named = raw.get("architectures")
    if named is not None and not (
        isinstance(named, list) and all(isinstance(item, str) for item in named)
    ):
        raise ModelFormatError(f"{path}: architectures must be a list of names, found {named!r}")
    name = named[0] if named else None
    by_class = {
        family.class_prefix + suffix: (family, task)
        for family in FAMILIES.values()
        for suffix, task in TASK_SUFFIXES.items()
    }
    if name is not None:
        found = by_class.get(name)
        if found is not None and model_type in (None, found[0].model_type):
            return found[0], name, found[1]
    elif isinstance(model_type, str) and model_type in FAMILIES:
        family = FAMILIES[model_type]
        return family, family.class_prefix + "Model", "features"
    raise UnsupportedModelError(
        f"{path}: architecture {name!r} (model_type {model_type!r}) is not supported; supported "
        f"are {', '.join(supported_architectures())}"
    )


def _labels(raw: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = raw.get("id2label")
    if names is None:
        count = _number(raw, "num_labels", path, 1, 2)
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(names, dict) or not names:
        raise ModelFormatError(f"{path}: id2label must map indices to names, found {names!r}")
    try:
        ordered = {int(key): str(value) for key, value in names.items()}
    except ValueError:
        raise ModelFormatError(
            f"{path}: id2label has a key that is no integer: {names!r}"
        ) from None
    if sorted(ordered) != list(range(len(ordered))):
        raise ModelFormatError(
            f"{path}: id2label must number its {len(ordered)} labels from 0, found "
            f"{sorted(ordered)}"
        )
    return tuple(ordered[i] for i in range(len(ordered)))


def _activation(name: Any, path: Path, known: Mapping[str, str] | None) -> str:
    table = activation_names() if known is None else known
    if not isinstance(name, str) or name not in table:
        raise UnsupportedModelError(
            f"{path}: activation {name!r} is not supported; supported are "
            f"{', '.join(sorted(table))}"
        )
    return table[name]


def parse_config(
    raw: Mapping[str, Any],
    path: Path,
    *,
    activations: Mapping[str, str] | None = None,
    features_only: bool = False,
) -> EncoderConfig:
    """Interpret the content of a config.json.

    ``activations`` maps Hugging Face names to kernel names (default: what the extension offers);
    ``features_only`` ignores the task head, as a sentence-transformers folder with a pooling module
    does. Raises UnsupportedModelError or ModelFormatError naming the field, its value and what is
    allowed.
    """
    _refuse_features(raw, path)
    family, architecture, task = _architecture(raw, path)
    if features_only:
        task = "features"
    names = family.config_names

    # transformers writes a family's own names, but its config classes accept the general ones too.
    def key(name: str) -> str:
        own = names.get(name, name)
        return own if own in raw or name not in raw else name

    def number(name: str, minimum: int = 1, default: Any = None) -> int:
        return _number(raw, key(name), path, minimum, default)

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    if hidden % heads:
        raise ModelFormatError(
            f"{path}: hidden size {hidden} is not a multiple of the {heads} attention heads"
        )
    rows = number("max_position_embeddings")
    pad_id = -1
    if family.positions_follow_pad:
        # MPNet fixes its padding row whatever config.json says.
        pad_id = 1 if family.model_type == "mpnet" else number("pad_token_id", 0, 1)
    offset = pad_id + 1
    if rows <= offset:
        raise ModelFormatError(
            f"{path}: max_position_embeddings={rows} leaves no position after the padding id "
            f"{pad_id}"
        )
    eps = 1e-12 if family.model_type == "distilbert" else raw.get("layer_norm_eps", 1e-12)
    # The engine computes with float32, where the smallest numbers are 0.
    small = isinstance(eps, int | float) and not isinstance(eps, bool) and eps < 1
    if not small or not np.float32(eps) > 0:
        raise ModelFormatError(
            f"{path}: layer_norm_eps must be above 0 as a float32 and below 1, found {eps!r}"
        )
    buckets = 0
    if family.relative_bias:
        buckets = number("relative_attention_num_buckets", 32, 32)
    problem = raw.get("problem_type")
    problems = ("regression", "single_label_classification", "multi_label_classification")
    if problem not in (None, *problems):
        raise ModelFormatError(f"{path}: problem_type {problem!r} is none of {', '.join(problems)}")
    labels = () if task == "features" else _labels(raw, path)
    if task == "question-answering" and len(labels) != 2:
        raise ModelFormatError(
            f"{path}: a question-answering head has 2 outputs, config.json gives {len(labels)} "
            "labels"
        )
    return EncoderConfig(
        family=family,
        architecture=architecture,
        task=task,
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        intermediate=number("intermediate_size"),
        embedding_size=number("embedding_size") if family.model_type == "electra" else hidden,
        vocab_size=number("vocab_size"),
        max_positions=rows - offset,
        position_rows=rows,
        position_offset=offset,
        position_pad_id=pad_id,
        type_vocab_size=number("type_vocab_size", 1, 2) if family.segments else 0,
        activation=_activation(raw.get(key("hidden_act"), "gelu"), path, activations),
        layer_norm_eps=float(eps),
        relative_buckets=buckets,
        labels=labels,
        problem_type=problem,
    )


def load_config(folder: Path, *, features_only: bool = False) -> EncoderConfig:
    """Read ``folder/config.json``."""
    path = folder / "config.json"
    return parse_config(read_json(path), path, features_only=features_only)
