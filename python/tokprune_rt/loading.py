"""`load`: a model's name to a ready `Model`."""

from __future__ import annotations

import os
from pathlib import Path

from tokprune_rt import _core
from tokprune_rt.loader import (
    EncoderConfig,
    PackedWeights,
    SentenceSetup,
    load_model,
    packed_file,
    resolve,
)
from tokprune_rt.model import Model
from tokprune_rt.policy import (
    CALIBRATED,
    ModelInfo,
    Policy,
    PolicySource,
    bind_policy,
    find_policy,
    load_policy,
    shipped_policy,
)

_MOST_THREADS = 1024
PRECISIONS = ("auto", "fp32", "bf16", "int8", "bf16x3")


def load(
    name: str | os.PathLike[str],
    policy: PolicySource = "auto",
    precision: str = "auto",
    threads: int | None = None,
    isa: str | None = None,
    packed_cache: str | os.PathLike[str] | None = None,
) -> Model:
    """Load a model for CPU inference.

    Args:
        name: a model folder, an installed weight package or the model it carries, or a Hugging Face
            hub id.
        policy: ``"auto"`` uses the folder's token_policy.json if there is one, ``"off"`` runs
            dense, ``"calibrated"`` takes the policy that comes with this package for the model's
            weights; else the path of a policy, its content as a dict, or a `Policy`.
        precision: arithmetic of the encoder layers' products: ``"fp32"``; ``"bf16x3"``, float32
            split into bfloat16 terms, made for AMX (without it: fp32); ``"bf16"``; ``"int8"``,
            uint8 activations scaled row by row and int8 weights per output channel. ``"auto"``
            never gives up quality: bf16x3 with AMX, else fp32.
        threads: worker threads, at most 1024; default: what the CPU, the affinity mask and the
            cgroup allow.
        isa: instruction set to use, for example ``"avx2"``; default: ``TOKPRUNE_ISA`` or the best
            one.
        packed_cache: a folder for packed weights. The first load of a model at a precision writes a
            file there; later ones, also in other processes, map it and share its memory. Files of
            weights that have changed since are not used again and can be deleted.

    Raises:
        FileNotFoundError: nothing answers to ``name``.
        ModelFormatError: a file of the model is missing, damaged or contradictory.
        UnsupportedModelError: the architecture or an option of it is not supported.
        PolicyError: the policy is malformed or does not fit the model.
        TypeError: ``threads`` is no int, or ``isa`` no str.
        ValueError: an unknown precision or instruction set, or a bad number of threads.
        OSError: ``packed_cache`` has no file of the model, and none can be written; told before the
            weights are read, unless the disk is full.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; supported are {', '.join(PRECISIONS)}")
    if threads is not None:
        if isinstance(threads, bool) or not isinstance(threads, int):
            raise TypeError(f"threads must be an int or None, got {type(threads).__name__}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if threads > _MOST_THREADS:
            raise ValueError(f"threads must be at most {_MOST_THREADS}, got {threads}")
    if isa is not None and not isinstance(isa, str):
        raise TypeError(f"isa must be a str or None, got {type(isa).__name__}")
    folder = resolve(name)
    cache = packed = None
    if packed_cache is not None:
        effective = _core.resolve_precision(precision, isa or "")
        cache = packed_file(Path(packed_cache), folder, effective)
        packed = cache.read()
        if packed is None:
            cache.check()
    loaded = load_model(folder, packed)
    chosen = choose_policy(policy, folder, loaded.config, loaded.setup)
    model = Model(
        loaded, os.fspath(name), policy=chosen, threads=threads, isa=isa, precision=precision
    )
    if cache is not None and not isinstance(loaded.weights, PackedWeights):
        shapes = {name: tensor.shape for name, tensor in loaded.weights.items()}
        cache.write(PackedWeights(shapes, model.engine.encoder.packed))
    return model


def choose_policy(
    source: PolicySource, folder: Path, config: EncoderConfig, setup: SentenceSetup
) -> Policy | None:
    """The policy that ``source`` stands for, checked against the model; None for a dense model."""
    if isinstance(source, str) and source == "off":
        return None
    found: Policy | None
    if isinstance(source, str) and source == CALIBRATED:
        found = shipped_policy(setup.encoder_folder)
    elif isinstance(source, str) and source == "auto":
        found = find_policy(folder)
    else:
        found = load_policy(source)
    if found is None:
        return None
    info = ModelInfo.from_config(
        config.core_config(setup.pooling, ()), span=config.task == "question-answering"
    )
    return bind_policy(found, info)
