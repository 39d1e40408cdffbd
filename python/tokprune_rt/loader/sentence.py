"""What a sentence-transformers folder adds to an encoder: pooling, dense, prompts, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokprune_rt.errors import ModelFormatError, UnsupportedModelError
from tokprune_rt.loader.config import activation_names, read_json, read_json_value

# In the order in which several legacy booleans are concatenated.
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "lasttoken",
}
_LENGTH_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_xlm-roberta_config.json",
)
# The runtime's own input module is a Transformer whose folder also says how it runs.
_TRANSFORMERS = ("Transformer", "TokpruneTransformer")
_SUPPORTED_MODULES = "Transformer, Pooling, Dense, Normalize and Dropout"


@dataclass(frozen=True)
class DenseLayer:
    """One Dense module after pooling."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class SentenceSetup:
    """Everything a folder says beyond the encoder itself."""

    encoder_folder: Path
    pooling: tuple[str, ...] = ()
    include_prompt: bool = True
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = False
    max_seq_length: int | None = None
    do_lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str | None = None
    pair_activation: str | None = None

    @property
    def has_pooling(self) -> bool:
        """True when a pooling module says what a sentence embedding is."""
        return bool(self.pooling)


def _module_folder(root: Path, entry: Any, path: Path) -> tuple[str, Path]:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise ModelFormatError(f"{path}: every module needs a type, found {entry!r}")
    relative = entry.get("path", "")
    if (
        not isinstance(relative, str)
        or Path(relative).is_absolute()
        or ".." in Path(relative).parts
    ):
        raise ModelFormatError(f"{path}: module path {relative!r} leaves the model folder")
    return entry["type"].rpartition(".")[2], root / relative


def parse_pooling(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The modes of a ``1_Pooling/config.json``, old or new style, in the runtime's names."""
    modes: Any = config.get("pooling_mode")
    if modes is None:
        unknown = [
            key for key in config if key.startswith("pooling_mode_") and key not in _LEGACY_POOLING
        ]
        if unknown:
            raise UnsupportedModelError(f"{path}: {unknown[0]} is not supported")
        modes = [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    if not isinstance(modes, list) or not modes:
        raise ModelFormatError(f"{path}: pooling_mode must be a name or a list, found {modes!r}")
    for mode in modes:
        if mode not in _POOLING:
            raise UnsupportedModelError(
                f"{path}: pooling mode {mode!r} is not supported; supported are "
                f"{', '.join(_POOLING)}"
            )
    return tuple(_POOLING[mode] for mode in modes)


def _dense_activation(name: Any, path: Path) -> str:
    if name is None:
        return "tanh"
    short = name.rpartition(".")[2] if isinstance(name, str) else ""
    if short == "Identity":
        return "identity"
    kernel = activation_names().get(short.lower())
    if kernel is None or short not in ("Tanh", "ReLU", "GELU"):
        raise UnsupportedModelError(
            f"{path}: activation_function {name!r} is not supported; supported are Identity, Tanh, "
            "ReLU and GELU"
        )
    return kernel


def _parse_dense(folder: Path) -> DenseLayer:
    path = folder / "config.json"
    raw = read_json(path)
    sizes = []
    for key in ("in_features", "out_features"):
        value = raw.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelFormatError(f"{path}: {key} must be a positive integer, found {value!r}")
        sizes.append(value)
    for key in ("module_input_name", "module_output_name"):
        if raw.get(key) not in (None, "sentence_embedding"):
            raise UnsupportedModelError(
                f"{path}: {key}={raw[key]!r} is not supported, only 'sentence_embedding' is"
            )
    if raw.get("use_residual"):
        raise UnsupportedModelError(f"{path}: use_residual is not supported")
    activation = _dense_activation(raw.get("activation_function"), path)
    return DenseLayer(folder, sizes[0], sizes[1], bool(raw.get("bias", True)), activation)


def _transformer_limits(folder: Path) -> tuple[int | None, bool]:
    for name in _LENGTH_FILES:
        path = folder / name
        if path.is_file():
            raw = read_json(path)
            length = raw.get("max_seq_length")
            if length is not None and (
                isinstance(length, bool) or not isinstance(length, int) or length < 1
            ):
                raise ModelFormatError(
                    f"{path}: max_seq_length must be a positive integer or null, found {length!r}"
                )
            return length, bool(raw.get("do_lower_case", False))
    return None, False


def _modules(folder: Path) -> dict[str, Any]:
    path = folder / "modules.json"
    if not path.is_file():
        return {"encoder_folder": folder}
    entries = read_json_value(path)
    if not isinstance(entries, list) or not entries:
        raise ModelFormatError(f"{path}: expected a non-empty list of modules")
    found: dict[str, Any] = {"dense": ()}
    for position, entry in enumerate(entries):
        kind, place = _module_folder(folder, entry, path)
        if (kind in _TRANSFORMERS) != (position == 0):
            raise UnsupportedModelError(
                f"{path}: module {position} is a {kind}; a Transformer must come first and only "
                "there"
            )
        if kind in _TRANSFORMERS:
            found["encoder_folder"] = place
        elif kind == "Pooling" and "pooling" not in found:
            config_path = place / "config.json"
            raw = read_json(config_path)
            found["pooling"] = parse_pooling(raw, config_path)
            found["include_prompt"] = bool(raw.get("include_prompt", True))
        elif kind == "Dense" and "pooling" in found and not found.get("normalize"):
            found["dense"] += (_parse_dense(place),)
        elif kind == "Normalize" and "pooling" in found:
            found["normalize"] = True
        elif kind != "Dropout":
            raise UnsupportedModelError(
                f"{path}: module {position} ({kind}) is not supported there; supported are "
                f"{_SUPPORTED_MODULES}, in this order"
            )
    return found


def _prompts(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return {}
    raw = read_json(path)
    prompts = raw.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(v, str) for v in prompts.values()):
        raise ModelFormatError(f"{path}: prompts must map names to texts, found {prompts!r}")
    default = raw.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelFormatError(
            f"{path}: default_prompt_name {default!r} is none of the prompts {sorted(prompts)}"
        )
    return {
        "prompts": dict(prompts),
        "default_prompt_name": default,
        "similarity": raw.get("similarity_fn_name"),
        "pair_activation": raw.get("activation_fn"),
    }


def _pair_activation(encoder_folder: Path, stated: str | None) -> str | None:
    if stated is not None:
        return stated
    raw = read_json(encoder_folder / "config.json")
    nested = raw.get("sentence_transformers")
    if isinstance(nested, dict) and nested.get("activation_fn"):
        return str(nested["activation_fn"])
    older = raw.get("sbert_ce_default_activation_function")
    return str(older) if older else None


def load_setup(folder: Path) -> SentenceSetup:
    """Read the sentence-transformers files of ``folder``; all of them are optional."""
    found = _modules(folder)
    encoder_folder: Path = found["encoder_folder"]
    length, lower = _transformer_limits(encoder_folder)
    prompts = _prompts(folder)
    prompts["pair_activation"] = _pair_activation(encoder_folder, prompts.get("pair_activation"))
    return SentenceSetup(**found, **prompts, max_seq_length=length, do_lower_case=lower)
