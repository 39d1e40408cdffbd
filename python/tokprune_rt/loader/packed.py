"""Packed weights on disk: processes map one file instead of each packing a copy of its own."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.files import atomic_file

# Changes whenever packed bytes or their order do.
LAYOUT = 1
_MAGIC = b"TOKPACK\0"
_PAGE = 4096

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class PackedWeights:
    """The bytes that the engine packed from tensors of these shapes."""

    shapes: Shapes
    data: NDArray[np.uint8]


class PackedFile:
    """The file in ``folder`` for one model and precision, whether it exists yet or not.

    Its name is a digest of everything that the packed bytes depend on: the engine's configuration,
    the precision, and path, size and modification time of the weight files.
    """

    def __init__(
        self, folder: Path, weights: list[Path], core_config: Mapping[str, Any], precision: str
    ) -> None:
        files = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in weights]
        self.key = hashlib.sha256(
            json.dumps([LAYOUT, precision, dict(core_config), files], sort_keys=True).encode()
        ).hexdigest()
        self.path = folder / f"{self.key[:32]}.tokpack"

    def read(self) -> PackedWeights | None:
        """The weights, mapped read-only; None when there is no whole file of this key."""
        try:
            with self.path.open("rb") as file:
                prefix = file.read(len(_MAGIC) + 8)
                (length,) = struct.unpack_from("<Q", prefix, len(_MAGIC))
                header = json.loads(file.read(min(length, 1 << 24)))
            start = _round_up(len(prefix) + length)
            if prefix[: len(_MAGIC)] != _MAGIC or header["key"] != self.key:
                return None
            if self.path.stat().st_size != start + header["bytes"]:
                return None
            shapes = {name: tuple(shape) for name, shape in header["shapes"].items()}
            data = np.memmap(self.path, np.uint8, "r", offset=start, shape=(header["bytes"],))
        except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError):
            return None
        # The plain array keeps the mapping alive.
        return PackedWeights(shapes, data.view(np.ndarray))

    def check(self) -> None:
        """Make the folder; raises OSError when no file can be written there."""
        with self._writing(), tempfile.TemporaryFile(dir=self.path.parent):
            pass

    def write(self, weights: PackedWeights) -> None:
        """Write the file; readers see all of it or nothing. Raises OSError as `check`."""
        header = json.dumps(
            {"key": self.key, "bytes": weights.data.size, "shapes": weights.shapes}
        ).encode()
        start = _MAGIC + struct.pack("<Q", len(header)) + header
        with self._writing(), atomic_file(self.path) as file:
            file.write(start.ljust(_round_up(len(start)), b"\0"))
            file.write(weights.data.data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            told = f"packed_cache: no file can be written into {folder} ({error.strerror or error})"
            raise OSError(error.errno, told) from error


def _round_up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
