"""safetensors files -> canonical float32 tensors, every fault reported with its file and tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.errors import ModelFormatError
from tokprune_rt.loader.config import EncoderConfig, read_json
from tokprune_rt.loader.families import (
    WORD_EMBEDDINGS,
    expand_relative_bias,
    tensor_names,
    tensor_shapes,
)

Tensors = dict[str, NDArray[np.float32]]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
_FLOATS = ("F32", "F16", "BF16")


class WeightFiles:
    """The tensors of one folder, from ``model.safetensors`` or from the shards of its index."""

    def __init__(self, folder: Path) -> None:
        self._handles: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        self._data_start: dict[Path, dict[str, int]] = {}
        self._maps: dict[Path, NDArray[np.uint8]] = {}
        self.source = folder / WEIGHTS
        if self.source.is_file():
            self._where = dict.fromkeys(self._open(self.source).keys(), self.source)
        elif (folder / INDEX).is_file():
            self.source = folder / INDEX
            self._read_index(folder)
        else:
            raise ModelFormatError(_missing_weights(folder))

    def _open(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        handle = self._handles.get(path)
        if handle is None:
            try:
                handle = safe_open(path, framework="numpy")
            except (SafetensorError, OSError, ValueError) as err:
                raise ModelFormatError(f"{path}: not a valid safetensors file ({err})") from err
            self._handles[path] = handle
        return handle

    def _read_index(self, folder: Path) -> None:
        weight_map = read_json(self.source).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFormatError(f"{self.source}: weight_map is missing or empty")
        for name, file in weight_map.items():
            if not isinstance(file, str) or not file or Path(file).name != file:
                raise ModelFormatError(
                    f"{self.source}: tensor {name} points to {file!r}, which is no plain file name"
                )
            shard = folder / file
            if shard not in self._handles:
                if not shard.is_file():
                    raise ModelFormatError(f"{self.source}: the shard {file} is missing")
                self._open(shard)
            self._where[name] = shard
        contents = {path: set(handle.keys()) for path, handle in self._handles.items()}
        for name, shard in self._where.items():
            if name not in contents[shard]:
                raise ModelFormatError(
                    f"{shard}: tensor {name} is missing although {self.source.name} places it here"
                )

    def files(self) -> list[Path]:
        """The files that hold the tensors, and the index if there is one."""
        return sorted({self.source, *self._where.values()})

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._where)

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """One tensor as C-contiguous float32 of exactly ``shape``, all values finite."""
        stored = name
        if stored not in self._where:
            # Checkpoints converted from TensorFlow name a LayerNorm's tensors gamma and beta.
            stored = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
        path = self._where.get(stored)
        if path is None:
            raise ModelFormatError(
                f"{self.source}: tensor {name} is missing (expected float32 of shape {shape})"
            )
        handle = self._open(path)
        view = handle.get_slice(stored)
        dtype, found = view.get_dtype(), tuple(view.get_shape())
        if found != shape:
            raise ModelFormatError(
                f"{path}: tensor {stored} has shape {found}, expected {shape} from config.json"
            )
        if dtype not in _FLOATS:
            raise ModelFormatError(
                f"{path}: tensor {stored} has type {dtype}, expected one of {', '.join(_FLOATS)}"
            )
        if dtype == "F32":
            tensor = self._map_float32(path, stored, shape)
        elif dtype == "BF16":
            tensor = self._read_bfloat16(path, stored, shape)
        else:
            tensor = np.ascontiguousarray(handle.get_tensor(stored), dtype=np.float32)
        _check_finite(path, stored, tensor)
        return tensor

    def _map_float32(self, path: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        # The library would copy. A tensor may start anywhere, and only an unaligned one is copied.
        whole = self._maps.get(path)
        if whole is None:
            whole = self._maps[path] = np.memmap(path, np.uint8, "r").view(np.ndarray)
        start = self._start(path, name)
        raw = whole[start : start + 4 * int(np.prod(shape, dtype=np.int64))]
        return np.require(raw.view("<f4").reshape(shape), np.float32, ["C", "A"])

    def _read_bfloat16(self, path: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        # numpy has no bfloat16, so the raw bits are widened here.
        count = int(np.prod(shape, dtype=np.int64))
        raw = np.fromfile(path, dtype="<u2", count=count, offset=self._start(path, name))
        return (raw.astype(np.uint32) << 16).view(np.float32).reshape(shape)

    def _start(self, path: Path, name: str) -> int:
        """Where a tensor's bytes begin in its file; the library has checked the offsets."""
        starts = self._data_start.get(path)
        if starts is None:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            starts = {
                key: 8 + length + int(value["data_offsets"][0])
                for key, value in header.items()
                if key != "__metadata__"
            }
            self._data_start[path] = starts
        return starts[name]


def _check_finite(path: Path, name: str, tensor: NDArray[np.float32]) -> None:
    # A sum is finite unless something is not (or it overflows), and it is the cheapest full scan.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(tensor.sum()):
            return
    bad = np.argwhere(~np.isfinite(tensor))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        raise ModelFormatError(
            f"{path}: tensor {name} holds {tensor[index]} at {list(index)} "
            f"({len(bad)} values are not finite)"
        )


def conversion_command(folder: Path) -> str:
    """The shell command that rewrites ``folder/pytorch_model.bin`` as safetensors."""
    source, target = str(folder / TORCH_WEIGHTS), str(folder / WEIGHTS)
    return (
        'python -c "import torch, safetensors.torch as st; '
        f"w = torch.load({source!r}, map_location='cpu', weights_only=True); "
        "st.save_file({k: v.clone().contiguous() for k, v in w.items()}, "
        f"{target!r}, metadata={{'format': 'pt'}})\""
    )


def _missing_weights(folder: Path) -> str:
    if (folder / TORCH_WEIGHTS).is_file():
        return (
            f"{folder}: has {TORCH_WEIGHTS} but no {WEIGHTS}; pickled weights are not loaded "
            f"because they can run code. Convert them once with: {conversion_command(folder)}"
        )
    if list(folder.glob("pytorch_model*.bin*")):
        return (
            f"{folder}: has a sharded pytorch_model.bin but no {WEIGHTS}; pickled weights are not "
            "loaded "
            'because they can run code. Convert them once with: python -c "from transformers '
            "import "
            "AutoModel; "
            f'AutoModel.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"'
            " (for a model with a task head use its AutoModelFor... class)"
        )
    return (
        f"{folder}: no {WEIGHTS} and no {INDEX}. If the model is only published as "
        f"{TORCH_WEIGHTS}, put that file here and convert it with: {conversion_command(folder)}"
    )


def find_prefixes(files: WeightFiles, config: EncoderConfig) -> tuple[str, str]:
    """The encoder's prefix and the prefix outside it, for example ``("bert.", "")``."""
    bases = [
        name[: -len(WORD_EMBEDDINGS)] for name in files.names() if name.endswith(WORD_EMBEDDINGS)
    ]
    bases = [base for base in bases if not base or base.endswith(".")]
    if not bases:
        raise ModelFormatError(
            f"{files.source}: tensor {config.family.base_prefix}{WORD_EMBEDDINGS} is missing "
            "(with or without its prefix), so this is not a "
            f"{config.family.model_type} encoder's weight file"
        )
    base = min(bases, key=lambda item: (not item.endswith(config.family.base_prefix), len(item)))
    return base, base.removesuffix(config.family.base_prefix)


def load_tensors(folder: Path, config: EncoderConfig) -> Tensors:
    """Read every tensor of the encoder and its head.

    Returns canonical name -> float32 array, C-contiguous, in Hugging Face's [out, in] layout.
    Raises ModelFormatError naming the file, the tensor, what was found and what was expected.
    """
    files = WeightFiles(folder)
    base, root = find_prefixes(files, config)
    shapes = tensor_shapes(config)
    tensors = {
        canonical: files.read(name, shapes[canonical])
        for canonical, name in tensor_names(config, base, root).items()
    }
    if "relative_bias" in tensors:
        tensors["relative_bias"] = expand_relative_bias(
            tensors["relative_bias"], config.max_positions
        )
    return tensors


def load_dense(folder: Path, sizes: Mapping[str, int], *, bias: bool) -> Tensors:
    """Read a sentence-transformers Dense module: ``weight`` [out, in] and ``bias`` [out]."""
    files = WeightFiles(folder)
    rows, columns = sizes["out_features"], sizes["in_features"]
    return {
        "weight": files.read("linear.weight", (rows, columns)),
        "bias": files.read("linear.bias", (rows,)) if bias else np.zeros(rows, np.float32),
    }
