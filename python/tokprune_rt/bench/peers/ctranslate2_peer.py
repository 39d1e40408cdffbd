"""CTranslate2."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch, converted
from tokprune_rt.bench.peers.torch_peer import quiet

ctranslate2 = import_module("ctranslate2")


class Ctranslate2Peer:
    """Its own format, compute type float32."""

    note = "compute_type float32"

    def __init__(self, folder: Path, threads: int) -> None:
        def convert(target: Path) -> None:
            with quiet():
                converter = ctranslate2.converters.TransformersConverter(str(folder))
                converter.convert(str(target), force=True)

        path = converted(folder, "ctranslate2", ctranslate2.__version__, convert)
        self._encoder = ctranslate2.Encoder(
            str(path), device="cpu", compute_type="float32", intra_threads=threads, inter_threads=1
        )

    def prepare(self, batches: Sequence[PaddedBatch]) -> Call:
        ids = [item.ids.astype(np.int32) for item in batches]
        lengths = [item.lengths.astype(np.int32) for item in batches]

        def call() -> list[FloatArray]:
            return [
                np.asarray(
                    self._encoder.forward_batch(
                        ctranslate2.StorageView.from_array(item),
                        ctranslate2.StorageView.from_array(length),
                    ).last_hidden_state
                )
                for item, length in zip(ids, lengths, strict=True)
            ]

        return call
