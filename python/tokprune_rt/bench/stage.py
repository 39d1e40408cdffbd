"""One model, loaded into every engine."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tokprune_rt.bench.calibration import calibration_for
from tokprune_rt.bench.models import REAL_MODEL, Shape
from tokprune_rt.bench.peers import (
    REFERENCE,
    Peer,
    PeerSetup,
    ReferencePeer,
    load_peer,
    missing,
)
from tokprune_rt.bench.precision import AUTO, DEFAULT
from tokprune_rt.bench.pruning import halving_policy
from tokprune_rt.errors import TokpruneError
from tokprune_rt.loader import describe_model
from tokprune_rt.loader.config import EncoderConfig
from tokprune_rt.loading import load
from tokprune_rt.model import Model

PeerKey = tuple[str, str]
"""Engine, precision."""


@dataclass(frozen=True)
class Stage:
    """One model, loaded into every engine.

    Attributes:
        models: precision -> this package.
        peers: (engine, precision) -> another engine.
        reference: the engine whose fp32 results are right; None where it is not installed.
        absent: precision -> why this package does not run at it.
    """

    shape: Shape
    folder: Path
    label: str
    config: EncoderConfig
    threads: int
    models: Mapping[str, Model]
    peers: Mapping[PeerKey, Peer]
    reference: ReferencePeer | None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def real(self) -> bool:
        return self.label == REAL_MODEL


def load_own(
    folder: Path, layers: int, precision: str, threads: int | None, isa: str | None
) -> Model:
    """This package with the policy of the benchmark.

    Raises:
        ValueError: it does not run at this precision here, or runs at another one instead.
    """
    policy = halving_policy(layers)
    model = load(folder, policy=policy, precision=precision, threads=threads, isa=isa)
    if precision not in (AUTO, model.precision):
        raise ValueError(f"falls back to {model.precision} at {model.isa}")
    return model


def _load_all(
    folder: Path, layers: int, precisions: Sequence[str], threads: int | None, isa: str | None
) -> tuple[dict[str, Model], dict[str, str]]:
    models: dict[str, Model] = {}
    absent = {}
    for precision in precisions:
        try:
            model = load_own(folder, layers, precision, threads, isa)
        except (ValueError, TokpruneError) as error:
            if precision in (DEFAULT, AUTO):
                raise
            absent[precision] = str(error)
        else:
            models.setdefault(model.precision, model)
    return models, absent


@contextmanager
def stage(
    shape: Shape,
    folder: Path,
    label: str,
    peers: Sequence[PeerKey],
    threads: int,
    precisions: Sequence[str] = (DEFAULT,),
    isa: str | None = None,
) -> Iterator[Stage]:
    """Load a model into every engine; everything is released at the end.

    Args:
        peers: engines with their precision, all installed.
        threads: of every engine.
        precisions: of this package.
        isa: instruction set of this package; None: what it chooses.
    """
    config, _ = describe_model(folder)
    calibration = calibration_for(folder)
    loaded: dict[PeerKey, Peer] = {}
    models: dict[str, Model] = {}

    def other(name: str, precision: str) -> Peer:
        return load_peer(name, PeerSetup(folder, threads, precision, calibration))

    try:
        models, absent = _load_all(folder, shape.layers, precisions, threads, isa)
        for key in peers:
            loaded[key] = other(*key)
        engine = loaded.get((REFERENCE, DEFAULT))
        if engine is None and missing(REFERENCE) is None:
            engine = other(REFERENCE, DEFAULT)
        reference = cast(ReferencePeer | None, engine)
        yield Stage(shape, folder, label, config, threads, models, loaded, reference, absent)
    finally:
        loaded.clear()
        models.clear()
        gc.collect()
