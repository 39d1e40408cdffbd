"""What a forward pass returns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokprune_rt._core import ForwardResult
    from tokprune_rt.loader import EncoderConfig

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class Stats:
    """Work done by one forward pass.

    Attributes:
        tokens_in: tokens of the batch.
        kept_per_sequence: int32 [layers, batch], tokens alive after each layer's pruning.
        macs: multiply-adds executed in the encoder layers.
        macs_dense: the same for the same lengths without pruning.
        macs_padded: the same without pruning, every sequence padded to the longest of the batch.
    """

    tokens_in: int
    kept_per_sequence: IntArray
    macs: int
    macs_dense: int
    macs_padded: int

    @property
    def kept_per_layer(self) -> NDArray[np.int64]:
        """int64 [layers]: `kept_per_sequence` summed over the batch."""
        total: NDArray[np.int64] = self.kept_per_sequence.sum(axis=1, dtype=np.int64)
        return total


@dataclass(frozen=True)
class Trace:
    """Which tokens stayed, and which share a row, layer by layer.

    Attributes:
        kept: ``kept[layer][sequence]``: int32 array of the original positions alive after that
            layer's pruning.
        scores: ``scores[layer]`` is None for a layer without scores, else one float32 array per
            sequence over its original positions, NaN where a token had no score.
        rows: ``rows[layer][sequence]``: int32 array over the original positions: the position of
            the token in whose row each one is after that layer. Its own, until it merges into
            another, is pooled or packaged; -1 once it was dropped.
    """

    kept: list[list[IntArray]]
    scores: list[list[FloatArray] | None]
    rows: list[list[IntArray]]


@dataclass(frozen=True)
class ForwardOutput:
    """Result of `Model.forward` for a batch of B sequences.

    Attributes:
        hidden: one float32 [kept_i, hidden] array per sequence.
        positions: one int32 [kept_i] array per sequence: the original positions of those rows.
        pooled: float32 [B, e], or None for a model without pooling.
        logits: float32 [B, labels] for a sequence head, one [tokens_i, labels] array per sequence
            for a token head, None without a head.
        stats: tokens and multiply-adds.
        trace: with ``trace=True``, which tokens stayed.
    """

    hidden: list[FloatArray]
    positions: list[IntArray]
    pooled: FloatArray | None
    logits: FloatArray | list[FloatArray] | None
    stats: Stats
    trace: Trace | None


def dense_macs(lengths: NDArray[np.int64], layers: int, hidden: int, intermediate: int) -> int:
    """Multiply-adds of the encoder layers for sequences of these lengths, without pruning.

    Per layer and sequence of n tokens: projections 4 d^2 n, attention 2 n^2 d, feed-forward 2 d f
    n.
    """
    n = [int(length) for length in lengths]
    linear = (4 * hidden * hidden + 2 * hidden * intermediate) * sum(n)
    return layers * (linear + 2 * hidden * sum(length * length for length in n))


def split_rows(rows: FloatArray, bounds: NDArray[np.integer]) -> list[FloatArray]:
    """Rows [T, ...] cut at cumulative ``bounds`` [B + 1]."""
    return [rows[a:b] for a, b in pairwise(bounds)]


def make_output(
    result: ForwardResult,
    cu_seqlens: IntArray,
    *,
    hidden: int,
    intermediate: int,
    token_head: bool,
) -> ForwardOutput:
    """Turn the extension's arrays into a `ForwardOutput`."""
    lengths = np.diff(cu_seqlens).astype(np.int64)
    kept = result["kept"]
    layers = kept.shape[0]
    cu_kept = result["cu_kept"]
    rows = result["hidden"]
    if rows is None:
        raise ValueError("the encoder was not asked for hidden states")
    positions = result["positions"]
    logits: FloatArray | list[FloatArray] | None = result["logits"]
    if token_head and isinstance(logits, np.ndarray):
        logits = split_rows(logits, cu_seqlens)
    trace = None
    if result["trace_kept"] is not None and result["trace_rows"] is not None:
        scores = result["trace_scores"] or [None] * layers
        trace = Trace(result["trace_kept"], scores, result["trace_rows"])
    padded = np.full(len(lengths), lengths.max(initial=0), dtype=np.int64)
    return ForwardOutput(
        hidden=split_rows(rows, cu_kept),
        positions=[positions[a:b] for a, b in pairwise(cu_kept)],
        pooled=result["pooled"],
        logits=logits,
        stats=Stats(
            tokens_in=int(cu_seqlens[-1]),
            kept_per_sequence=kept,
            macs=int(result["macs"]),
            macs_dense=dense_macs(lengths, layers, hidden, intermediate),
            macs_padded=dense_macs(padded, layers, hidden, intermediate),
        ),
        trace=trace,
    )


def empty_output(config: EncoderConfig, dimension: int | None, trace: bool) -> ForwardOutput:
    """The result for no sequences at all."""
    kept = np.zeros((config.layers, 0), dtype=np.int32)
    logits: FloatArray | list[FloatArray] | None = None
    if config.head == "first":
        logits = np.zeros((0, len(config.labels)), dtype=np.float32)
    elif config.head == "token":
        logits = []
    empty: list[list[IntArray]] = [[] for _ in range(config.layers)]
    empty_trace = Trace(empty, [None] * config.layers, empty)
    return ForwardOutput(
        hidden=[],
        positions=[],
        pooled=None if dimension is None else np.zeros((0, dimension), dtype=np.float32),
        logits=logits,
        stats=Stats(0, kept, 0, 0, 0),
        trace=empty_trace if trace else None,
    )
