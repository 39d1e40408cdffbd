"""What the benchmark needs of another engine."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.bench.models import cache_folder

FloatArray = NDArray[np.float32]
Call = Callable[[], Sequence[FloatArray]]


@dataclass(frozen=True)
class Calibration:
    """Inputs from which an engine learns the ranges of activations.

    Attributes:
        name: says what they are; another name, another set.
        make: makes the token id sequences.
    """

    name: str
    make: Callable[[], Sequence[NDArray[np.int32]]]


@dataclass(frozen=True)
class PeerSetup:
    """What an engine is given to load."""

    folder: Path
    threads: int
    precision: str
    calibration: Calibration


@dataclass(frozen=True)
class PaddedBatch:
    """Token ids as engines without ragged inputs take them.

    Attributes:
        ids: int64 [B, S], padded on the right with 0.
        mask: int64 [B, S], 1 for a token, 0 for padding.
        lengths: int64 [B].
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    lengths: NDArray[np.int64]


def pad(sequences: Sequence[NDArray[np.int32]]) -> PaddedBatch:
    """Pad token id sequences to the longest one."""
    lengths = np.array([len(item) for item in sequences], np.int64)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros(mask.shape, np.int64)
    ids[mask == 1] = np.concatenate(sequences)
    return PaddedBatch(ids, mask, lengths)


class Peer(Protocol):
    """Another engine with a model loaded."""

    @property
    def note(self) -> str:
        """What a reader of the numbers should know about how this engine runs."""
        ...

    def prepare(self, batches: Sequence[PaddedBatch]) -> Call:
        """A function that runs these batches; it returns float32 [B, S, d] for each of them.

        What it returns is overwritten by the next call.
        """
        ...


class ReferencePeer(Peer, Protocol):
    """The engine to whose results the others' are compared."""

    @property
    def bert(self) -> Any:
        """transformers' BertModel."""
        ...


def converted(folder: Path, kind: str, version: str, convert: Callable[[Path], None]) -> Path:
    """The folder into which ``convert`` put this model; kept between runs.

    ``kind`` and ``version`` name the converter.
    """
    weights = folder / "model.safetensors"
    status = weights.stat()
    key = f"{weights.resolve()}:{status.st_size}:{status.st_mtime_ns}:{kind}:{version}"
    target = cache_folder() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if target.exists():
        return target
    draft = Path(tempfile.mkdtemp(dir=cache_folder()))
    try:
        convert(draft)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target
