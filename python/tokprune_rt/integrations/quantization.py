"""Quantised embeddings, value for value those of ``sentence_transformers.quantize_embeddings``."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_FEW = 100
_log = logging.getLogger(__name__)


def check_precision(precision: str) -> None:
    """ValueError unless ``precision`` is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision {precision!r} is not supported, must be one of {', '.join(PRECISIONS)}"
        )


def quantization_ranges(embeddings: NDArray[Any], precision: str) -> NDArray[Any]:
    """Least and largest value of every dimension, [2, d], from embeddings [n, d].

    Raises ValueError for a single embedding, which has no range.
    """
    if embeddings.ndim == 1 or len(embeddings) == 1:
        raise ValueError(
            f"a single embedding has no {precision} range; call quantize_embeddings with ranges= "
            "or calibration_embeddings= from a representative set of embeddings"
        )
    if len(embeddings) < _FEW:
        _log.warning(
            "%s ranges are computed from %d embeddings; ranges= or calibration_embeddings= from "
            "more embeddings make them more stable",
            precision,
            len(embeddings),
        )
    ranges: NDArray[Any] = np.stack([embeddings.min(axis=0), embeddings.max(axis=0)])
    return ranges


def quantize_embeddings(
    embeddings: NDArray[Any],
    precision: str,
    ranges: NDArray[Any] | None = None,
    calibration_embeddings: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Quantise embeddings [n, d] or [d].

    Args:
        embeddings: floating-point embeddings.
        precision: ``"int8"`` and ``"uint8"`` cut every dimension's range into 256 buckets;
            ``"binary"`` (int8) and ``"ubinary"`` (uint8) pack eight signs into a byte.
        ranges: [2, d], least and largest value of every dimension, for int8 and uint8.
        calibration_embeddings: [m, d], embeddings whose ranges to use instead.

    Returns:
        [n, d], or [n, ceil(d / 8)] for binary and ubinary.

    Raises:
        ValueError: an unknown precision, or int8/uint8 of a single embedding without ranges.
        TypeError: embeddings that are already integers.
    """
    check_precision(precision)
    if embeddings.dtype.kind != "f":
        raise TypeError(f"embeddings to quantise must be floats, got {embeddings.dtype}")
    if precision == "float32":
        return embeddings.astype(np.float32)
    if precision.endswith("binary"):
        bits: NDArray[Any] = np.packbits(embeddings > 0, axis=-1)
        return bits if precision == "ubinary" else (bits - 128).astype(np.int8)
    if ranges is None:
        known = calibration_embeddings
        if known is None:
            ranges = quantization_ranges(embeddings, precision)
        else:
            ranges = np.stack([known.min(axis=0), known.max(axis=0)])
    low, high = ranges.astype(np.float32, copy=False)
    steps = (high - low) / 255
    # A dimension that never changes has no step; all of it falls into the first bucket.
    steps = np.where(steps == 0, 1, steps)
    buckets = np.clip(np.floor((embeddings - low) / steps), 0, 255)
    kind, shift = (np.uint8, 0) if precision == "uint8" else (np.int8, 128)
    found: NDArray[Any] = (buckets - shift).astype(kind)
    return found
