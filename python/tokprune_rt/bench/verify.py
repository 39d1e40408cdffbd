"""Results are checked before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.bench.peers import FloatArray
from tokprune_rt.bench.precision import Tolerance
from tokprune_rt.bench.pruning import MIN_TOKENS
from tokprune_rt.model import Model

if TYPE_CHECKING:
    import torch


class VerificationError(AssertionError):
    """A result differs from the reference."""


@dataclass(frozen=True)
class Agreement:
    """How close a result is to the reference.

    Attributes:
        difference: largest difference of an element of a hidden state.
        cosine: least cosine of a sequence's mean hidden state.
    """

    difference: float
    cosine: float


def compare(
    expected: Sequence[FloatArray], found: Sequence[FloatArray], what: str, tolerance: Tolerance
) -> Agreement:
    """Compare the hidden states of every sequence.

    Raises:
        VerificationError: a wrong shape, or a result outside the tolerance.
    """
    difference, cosine = 0.0, 1.0
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape:
            raise VerificationError(f"{what}: sequence {i} has shape {b.shape}, not {a.shape}")
        own = float(np.abs(a - b).max())
        if not own <= (np.inf if tolerance.difference is None else tolerance.difference):
            raise VerificationError(f"{what}: sequence {i} differs by {own:.2g}")
        similar = float(cosines(a.mean(axis=0)[None], b.mean(axis=0)[None])[0])
        worst = float(cosines(a, b).min())
        for part, value, least in (
            ("mean", similar, tolerance.cosine),
            ("worst token", worst, tolerance.token_cosine),
        ):
            if not value >= least:
                raise VerificationError(
                    f"{what}: sequence {i}: the {part} has a cosine of {value:.5f} to the "
                    f"reference's, less than {least}"
                )
        difference, cosine = max(difference, own), min(cosine, similar)
    return Agreement(difference, cosine)


def check_pruned(
    bert: Any,
    model: Model,
    shares: Mapping[int, float],
    sequences: Sequence[NDArray[np.int32]],
    tolerance: Tolerance,
    what: str = "pruned",
) -> Agreement:
    """Check the pruned forward of these sequences against PyTorch, decisions included.

    Args:
        bert: transformers' BertModel with the weights of ``model``.
        shares: layer -> share of the input that it leaves, as in `pruning.halving_policy`.

    Returns:
        How close the surviving hidden states are.

    Raises:
        VerificationError: a wrong number of tokens, a token kept over a better one, or a state
            outside the tolerance.
    """
    import torch

    output = model.forward(sequences, trace=True)
    if output.trace is None:
        raise VerificationError("no trace of the pruned forward")
    expected = []
    for i, ids in enumerate(sequences):
        kept = [layer[i] for layer in output.trace.kept]
        with torch.inference_mode():
            whole = torch.from_numpy(ids.astype(np.int64))
            expected.append(_follow(bert, whole, kept, shares, tolerance.tie))
    return compare(expected, output.hidden, what, tolerance)


def _follow(
    bert: Any,
    ids: torch.Tensor,
    kept: Sequence[NDArray[np.int32]],
    shares: Mapping[int, float],
    tie: float,
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
            wanted = _wanted(len(alive), len(ids), shares[number])
            _check_decision(weights.mean(0).sum(0).numpy(), stays, wanted, number, tie)
            x, alive = x[stays], alive[stays]
        x = layer.output(layer.intermediate(x), x)
    states: FloatArray = x.numpy()
    return states


def _wanted(alive: int, n0: int, share: float) -> int:
    return min(alive, max(MIN_TOKENS, int(np.ceil(share * n0 - 1e-9))))


def _check_decision(
    scores: FloatArray, stays: NDArray[np.bool_], wanted: int, layer: int, tie: float
) -> None:
    if stays.sum() != wanted:
        raise VerificationError(f"layer {layer} kept {stays.sum()} tokens, not {wanted}")
    if not stays[0]:
        raise VerificationError(f"layer {layer} dropped the protected first token")
    if stays.all() or wanted == 1:
        return
    worst, best = scores[1:][stays[1:]].min(), scores[~stays].max()
    if worst < best * (1 - tie):
        raise VerificationError(f"layer {layer} kept a score of {worst:.6g}, dropped {best:.6g}")


def cosines(dense: FloatArray, pruned: FloatArray) -> NDArray[np.float64]:
    """Cosine of each pair of rows of two float32 [n, e] arrays; float64 [n]."""
    a, b = dense.astype(np.float64), pruned.astype(np.float64)
    products = (a * b).sum(axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    result: NDArray[np.float64] = products / norms
    return result
