"""Folders that run here from the published artefacts of LTP, ToP and LAT.

PyTorch files are read as plain tensors; one that holds anything else is refused, since reading it
could run whatever code it names.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokprune_rt.errors import ModelFormatError, UnsupportedModelError
from tokprune_rt.exporting import export
from tokprune_rt.files import atomic_folder
from tokprune_rt.loader import describe_model, resolve
from tokprune_rt.loader.tokenizer_files import TOKENIZER_FILES
from tokprune_rt.policy import parse_policy, preset
from tokprune_rt.policy.preset_parts import Document

_THRESHOLD = re.compile(r"encoder\.layer\.(\d+)\.attention\.self\.pruner\.keep_threshold$")
# Buffers of the quantised variant of the code, which checkpoints hold even without quantisation.
_BUFFERS = re.compile(r"(_integer|_scaling_factor|\.x_min|\.x_max|\.shift|position_ids)$")
_PREFIXES = ("ibert.", "ltp.", "roberta.")
_OWN_CONFIG = ("prune_mode", "quant_mode", "token_keep_rate", "token_threshold", "scoring_mode")
_FINAL = "final_token_threshold"


def import_ltp(source: Path, out: Path, s_pad: float = 128) -> Path:
    """A checkpoint of kssteven418/LTP: weights, learned thresholds and their rule.

    Args:
        source: a folder with config.json, tokenizer files and pytorch_model.bin or
            model.safetensors.
        out: the folder to write; it must not exist or be empty.
        s_pad: the length to which training padded, which the checkpoint does not say; its recipe's
            is 128. Decisions depend on it.

    Raises:
        ModelFormatError: a file is missing, damaged or contradictory.
        UnsupportedModelError: a quantised checkpoint.
    """
    config = _read_json(source / "config.json")
    if config.get("model_type") != "ltp":
        raise ModelFormatError(
            f"{source / 'config.json'}: model_type is {config.get('model_type')!r}; an LTP "
            "checkpoint has 'ltp'"
        )
    if config.get("quant_mode"):
        raise UnsupportedModelError(
            f"{source / 'config.json'}: quant_mode is true; only checkpoints without quantisation "
            "can be imported (precision='int8' quantises here)"
        )
    layers = int(_value(config, "num_hidden_layers", source))
    deltas = np.zeros(layers, np.float32)
    tensors: dict[str, Tensor] = {}
    for name, value in _weights(source).items():
        if match := _THRESHOLD.search(name):
            if int(match[1]) >= layers:
                raise ModelFormatError(f"{name}: the model has only {layers} layers")
            deltas[int(match[1])] = float(value)
        elif not _BUFFERS.search(name) and ".pruner." not in name:
            tensors[_renamed(name)] = value.contiguous()
    document = _ltp_document(config, layers, deltas, s_pad, source)
    kept = {k: v for k, v in config.items() if k not in (*_OWN_CONFIG, _FINAL)}
    kept["model_type"] = "roberta"
    kept["architectures"] = [
        re.sub(r"^(IBert|LTP|Ltp)", "Roberta", name) for name in config.get("architectures") or ()
    ]
    with atomic_folder(out) as work:
        (work / "config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, work / name)
        parse_policy(document).save(work)
        describe_model(work)
    return out


def _ltp_document(
    config: Mapping[str, Any], layers: int, deltas: np.ndarray[Any, Any], s_pad: float, source: Path
) -> Document:
    mode = config.get("prune_mode", "absolute_threshold")
    provenance = {"method": "ltp", "imported": "LTP checkpoint", "prune_mode": mode}
    if mode == "absolute_threshold":
        final = float(_value(config, _FINAL, source))
        alive = config.get("scoring_mode") == "mean_norm"
        return preset(
            "ltp",
            layers=layers,
            final_threshold=final,
            deltas=deltas,
            s_pad=s_pad,
            norm="alive" if alive else None,
            official=True,
            provenance=provenance,
        )
    if mode == "topk":
        first = max(3, math.ceil(0.15 * layers))
        final = float(_value(config, "token_keep_rate", source))
        places = list(range(first, layers))
        span = max(1, layers - first)
        rates = [max(0.01, 1 - (1 - final) * (i + 1) / span) for i in range(len(places))]
        select: Document = {"kind": "ratio", "ratio": rates, "of": "n0", "round": "round"}
        return _official(layers, places, select, provenance)
    if mode == "threshold":
        places = list(range(1, layers))
        select = {
            "kind": "threshold_rel",
            "t": float(_value(config, "token_threshold", source)),
            "of": "max",
        }
        return _official(layers, places, select, provenance)
    raise UnsupportedModelError(
        f"{source / 'config.json'}: prune_mode is {mode!r}; supported: absolute_threshold, topk, "
        "threshold"
    )


def _value(config: Mapping[str, Any], name: str, source: Path) -> float:
    found = config.get(name)
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise ModelFormatError(
            f"{source / 'config.json'}: {name}: expected a number, found {found!r}"
        )
    return found


def _official(
    layers: int, places: Sequence[int], select: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Document:
    """A policy under the published code's rule that no token is protected."""
    step = {"layers": list(places), "site": "mid", "score": "received", "select": dict(select)}
    return {
        "format": "token-policy",
        "version": 1,
        "layers": layers,
        "dead_first": "passive",
        "scores": {"received": {"kind": "attn_col"}},
        "steps": [{**step, "action": {"kind": "drop"}}] if places else [],
        "provenance": dict(provenance),
    }


def import_top(model: str, masks: Path, out: Path, task: str = "cls") -> Path:
    """The masks of a ToP run (microsoft/Moonlit), ``zs.pt``, on a model of its weights.

    The published masks assume that padding and dropped tokens vote, which they do not here: the
    policy is marked as unverified, and its quality must be measured again.

    Args:
        model: as `load` takes it.
        masks: a PyTorch file with ``token_z`` [K, B] and ``pruner_z`` [K].
        out: the folder to write.
        task: "cls" for outputs that read the first token, "tokens" for an output per token.

    Raises:
        ModelFormatError: the file holds something else.
    """
    found = _tensors(masks)
    missing = [name for name in ("token_z", "pruner_z") if name not in found]
    if missing:
        raise ModelFormatError(
            f"{masks}: no {', '.join(missing)}; found: {', '.join(map(str, found)) or 'nothing'}"
        )
    bits = _binary(found["token_z"], masks, "token_z")
    gates = _binary(found["pruner_z"], masks, "pruner_z")
    if bits.ndim != 2 or gates.shape != bits.shape[:1]:
        raise ModelFormatError(
            f"{masks}: token_z is {list(bits.shape)} and pruner_z {list(gates.shape)}; "
            "expected [K, B] and [K]"
        )
    layers = describe_model(resolve(model))[0].layers
    document = preset(
        "top", layers=layers, token_bits=bits, gate_bits=gates, task=task, official=True
    )
    return export(model, out, parse_policy(document))


def import_lat(model: str, lengths: Path, out: Path, max_length: int | None = None) -> Path:
    """Length configurations of LAT: a JSON list of counts, or an object of named lists.

    Args:
        model: as `load` takes it.
        lengths: the file.
        out: the folder to write.
        max_length: the input length that the counts refer to; None: they are absolute.

    Raises:
        ModelFormatError: the file holds something else.
    """
    found = _read_json(lengths, (list, dict))
    layers = describe_model(resolve(model))[0].layers
    try:
        document = preset("lat", layers=layers, length_configs=found, max_length=max_length)
    except (TypeError, ValueError) as error:
        raise ModelFormatError(f"{lengths}: {error}") from error
    return export(model, out, parse_policy(document))


def _renamed(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return "roberta." + name[len(prefix) :]
    return name


def _binary(tensor: Tensor, path: Path, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Masks are stored as 0 and 1, sometimes with axes of one behind the first."""
    values = tensor.float().cpu().numpy()
    values = values.reshape(values.shape[:1] + tuple(n for n in values.shape[1:] if n != 1))
    if not np.isin(values, (0, 1)).all():
        raise ModelFormatError(f"{path}: {name} has values other than 0 and 1")
    return values.astype(np.int64)


def _weights(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if path.is_file():
        return load_file(path)
    path = folder / "pytorch_model.bin"
    if not path.is_file():
        raise ModelFormatError(f"{folder}: neither model.safetensors nor pytorch_model.bin")
    return _tensors(path)


def _tensors(path: Path) -> dict[str, Tensor]:
    """A file of torch.save that holds a mapping of names to tensors, and nothing else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelFormatError(f"{path}: not a file of plain tensors ({first})") from error
    if not isinstance(found, dict):
        raise ModelFormatError(f"{path}: expected names of tensors, found {type(found).__name__}")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _read_json(path: Path, kinds: tuple[type, ...] = (dict,)) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFormatError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ModelFormatError(f"{path}: expected a JSON {names}, found {type(found).__name__}")
    return found
