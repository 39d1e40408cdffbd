"""Results are checked before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.bench.peers import FloatArray
from tokprune_rt.bench.pruning import MIN_TOKENS
from tokprune_rt.model import Model

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3
# Scores that two exact implementations sum in different orders.
_TIE = 1e-4


class VerificationError(AssertionError):
    """A result differs from the reference."""


def max_difference(expected: Sequence[FloatArray], found: Sequence[FloatArray], what: str) -> float:
    """Largest difference of an element; VerificationError when it exceeds `TOLERANCE`."""
    largest = 0.0
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape:
            raise VerificationError(f"{what}: sequence {i} has shape {b.shape}, not {a.shape}")
        difference = float(np.abs(a - b).max())
        if not difference <= TOLERANCE:
            raise VerificationError(f"{what}: sequence {i} differs by {difference:.2g}")
        largest = max(largest, difference)
    return largest


def check_pruned(
    bert: Any, model: Model, shares: Mapping[int, float], sequences: Sequence[NDArray[np.int32]]
) -> float:
    """Check the pruned forward of these sequences against PyTorch, decisions included.

    Args:
        bert: transformers' BertModel with the weights of ``model``.
        shares: layer -> share of the input that it leaves, as in `pruning.halving_policy`.

    Returns:
        The largest difference of a surviving hidden state.

    Raises:
        VerificationError: a wrong number of tokens, a token kept over a better one, or a state off
            by more than `TOLERANCE`.
    """
    import torch

    output = model.forward(sequences, trace=True)
    if output.trace is None:
        raise VerificationError("no trace of the pruned forward")
    largest = 0.0
    for i, ids in enumerate(sequences):
        kept = [layer[i] for layer in output.trace.kept]
        with torch.inference_mode():
            states = _follow(bert, torch.from_numpy(ids.astype(np.int64)), kept, shares)
        found = output.hidden[i]
        largest = max(largest, max_difference([states], [found], f"pruned sequence {i}"))
    return largest


def _follow(
    bert: Any, ids: torch.Tensor, kept: Sequence[NDArray[np.int32]], shares: Mapping[int, float]
) -> FloatArray:
    """Run one sequence and remove the tokens that the engine removed, checking each decision."""
    alive = np.arange(len(ids))
    x = bert.embeddings(input_ids=ids[None])[0]
    for number, layer in enumerate(bert.encoder.layer):
        own = layer.attention.self
        heads = own.num_attention_heads
        q, k, v = (
            part(x).view(len(alive), heads, -1).transpose(0, 1)
            for part in (own.query, own.key, own.value)
        )
        weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        context = (weights @ v).transpose(0, 1).reshape(len(alive), -1)
        x = layer.attention.output(context, x)
        if number in shares:
            stays = np.isin(alive, kept[number])
            _check_decision(weights.mean(0).sum(0).numpy(), stays, len(ids), shares[number], number)
            x, alive = x[stays], alive[stays]
        x = layer.output(layer.intermediate(x), x)
    states: FloatArray = x.numpy()
    return states


def _check_decision(
    scores: FloatArray, stays: NDArray[np.bool_], n0: int, share: float, layer: int
) -> None:
    wanted = min(len(stays), max(MIN_TOKENS, int(np.ceil(share * n0 - 1e-9))))
    if stays.sum() != wanted:
        raise VerificationError(f"layer {layer} kept {stays.sum()} tokens, not {wanted}")
    if not stays[0]:
        raise VerificationError(f"layer {layer} dropped the protected first token")
    if stays.all() or wanted == 1:
        return
    worst, best = scores[1:][stays[1:]].min(), scores[~stays].max()
    if worst < best * (1 - _TIE):
        raise VerificationError(f"layer {layer} kept a score of {worst:.6g}, dropped {best:.6g}")


def cosines(dense: FloatArray, pruned: FloatArray) -> NDArray[np.float64]:
    """Cosine of each pair of rows of two float32 [n, e] arrays; float64 [n]."""
    a, b = dense.astype(np.float64), pruned.astype(np.float64)
    products = (a * b).sum(axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: NDArray[np.float64] = products / norms
    return result
