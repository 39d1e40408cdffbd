"""CTranslate2."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch, PeerSetup, converted
from tokprune_rt.bench.peers.torch_peer import quiet

ctranslate2 = import_module("ctranslate2")


class Ctranslate2Peer:
    """Its own format, converted to the precision of the computation."""

    def __init__(self, setup: PeerSetup) -> None:
        kind = {"fp32": "float32", "int8": "int8"}[setup.precision]
        self.note = f"compute_type {kind}"

        def convert(target: Path) -> None:
            with quiet():
                converter = ctranslate2.converters.TransformersConverter(str(setup.folder))
                converter.convert(str(target), quantization=kind, force=True)

        name = "ctranslate2" if kind == "float32" else f"ctranslate2-{kind}"
        path = converted(setup.folder, name, ctranslate2.__version__, convert)
        self._encoder = ctranslate2.Encoder(
            str(path),
            device="cpu",
            compute_type=kind,
            intra_threads=setup.threads,
            inter_threads=1,
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
