"""Random encoders by level and precision, and what a ragged call returned for each sequence."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import random_model as rm
from kernel_memory import assert_same_bits

from tokprune_rt import _core

LEVELS: list[str] = _core.isa_levels()
THREADS = (1, 2, 4)

# bf16x3, which "auto" picks where there are tiles, strays a few times further than fp32.
SLACK = 8 if _core.resolve_precision("auto") == "bf16x3" else 1
PLANS = rm.plans()


def has_tiles(level: str) -> bool:
    return bool(_core.kernels.has_tiles(level))  # type: ignore[attr-defined]


def rounds_rows(level: str) -> bool:
    """Whether bf16 rounds the activations as well, for bfloat16 products."""
    return bool(_core.kernels.has_bf16(level))  # type: ignore[attr-defined]


def precisions(level: str) -> tuple[str, ...]:
    """The arithmetics that differ on this level."""
    return ("fp32", "bf16", "int8", *(("bf16x3",) if has_tiles(level) else ()))


LEVELS_AND_PRECISIONS = [(level, name) for level in LEVELS for name in precisions(level)]


@functools.cache
def encoder(
    model: str, level: str, threads: int = 1, precision: str = "fp32", **changes: Any
) -> Any:
    shape = rm.config(**rm.MODELS[model], **changes)
    return _core.Encoder(shape, rm.tensors(shape), threads, level, precision)


@functools.cache
def plan(name: str | None) -> Any:
    return None if name is None else _core.Plan(PLANS[name])


def batch(model: str, sizes: Sequence[int], seed: int) -> list[rm.Tokens]:
    shape = rm.config(**rm.MODELS[model])
    return [rm.tokens(shape, size, seed + i) for i, size in enumerate(sizes)]


def models_and_plans() -> list[tuple[str, str | None]]:
    """Each model dense, and with every plan that it accepts."""
    pairs: list[tuple[str, str | None]] = []
    for model, changes in rm.MODELS.items():
        shape = rm.config(**changes)
        pairs.append((model, None))
        pairs += [(model, name) for name in PLANS if rm.fits(shape, PLANS[name])]
    return pairs


def split(out: dict[str, Any], sequences: Sequence[rm.Tokens], per_token: bool) -> list[Any]:
    """The parts of a result that belong to each sequence."""
    bounds = out["cu_kept"]
    tokens = np.cumsum([0, *map(len, sequences)])
    parts = []
    for s in range(len(sequences)):
        part = {"kept": out["kept"][:, s]}
        if out["hidden"] is not None:
            rows = slice(bounds[s], bounds[s + 1])
            part |= {"hidden": out["hidden"][rows], "positions": out["positions"][rows]}
        if out["pooled"] is not None:
            part["pooled"] = out["pooled"][s]
        if out["logits"] is not None:
            rows = slice(tokens[s], tokens[s + 1]) if per_token else slice(s, s + 1)
            part["logits"] = out["logits"][rows]
        if out["trace_kept"] is not None:
            part |= {f"kept {i}": layer[s] for i, layer in enumerate(out["trace_kept"])}
            for i, layer in enumerate(out["trace_scores"]):
                if layer is not None:
                    part[f"scores {i}"] = layer[s]
        parts.append(part)
    return parts


def assert_same_parts(actual: Any, expected: Any, message: str) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        assert actual[key].shape == expected[key].shape, f"{key} {message}"
        assert_same_bits(actual[key], expected[key], f"{key} {message}")
