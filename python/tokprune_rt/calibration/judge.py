"""How far a policy's answers are from the dense model's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NEIGHBOURS = 10


@dataclass(frozen=True)
class Quality:
    """Distance to the dense model on a set of texts; 1 is no distance.

    Attributes:
        value: what `min_quality` bounds: the mean cosine of embeddings, or the share of equal
            decisions of a classifier (one logit: Pearson's correlation of the scores).
        low: 5th percentile of the cosines; None for logits.
        neighbours: share of each text's ten nearest texts that stay, both sides pruned; None for
            logits.
        index: the same with a pruned query on dense vectors.
        divergence: mean Kullback-Leibler divergence of the classes, or mean squared difference of
            one logit, of the dense logit's variance; None for embeddings.
    """

    value: float
    low: float | None = None
    neighbours: float | None = None
    index: float | None = None
    divergence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class VectorJudge:
    """Judges embeddings by their cosines to the dense ones, float32 [n, d]."""

    name = "mean cosine"

    def __init__(self, dense: Floats) -> None:
        self._dense = _unit(dense)
        self._near = _nearest(self._dense @ self._dense.T)

    def loss(self, found: Floats) -> float:
        """1 - mean cosine."""
        return 1 - float(self._cosines(found).mean())

    def quality(self, found: Floats) -> Quality:
        """All measures."""
        cosines = self._cosines(found)
        vectors = _unit(found)
        return Quality(
            float(cosines.mean()),
            float(np.quantile(cosines, 0.05)),
            self._overlap(vectors @ vectors.T),
            self._overlap(vectors @ self._dense.T),
        )

    def _cosines(self, found: Floats) -> NDArray[np.float64]:
        cosines: NDArray[np.float64] = (_unit(found).astype(np.float64) * self._dense).sum(axis=1)
        return cosines

    def _overlap(self, similarities: Floats) -> float:
        pairs = zip(self._near, _nearest(similarities), strict=True)
        shared = [len(np.intersect1d(a, b)) / len(a) for a, b in pairs if len(a)]
        return float(np.mean(shared)) if shared else 1.0


class LogitJudge:
    """Judges logits, float32 [n, classes], by the dense ones."""

    name = "agreement"

    def __init__(self, dense: Floats) -> None:
        self._dense = dense.astype(np.float64)

    def loss(self, found: Floats) -> float:
        """Mean divergence."""
        if self._dense.shape[1] == 1:
            spread = max(float(self._dense.var()), 1e-12)
            return float(((found - self._dense) ** 2).mean()) / spread
        expected, got = _log_softmax(self._dense), _log_softmax(found.astype(np.float64))
        return float((np.exp(expected) * (expected - got)).sum(axis=1).mean())

    def quality(self, found: Floats) -> Quality:
        """All measures."""
        if self._dense.shape[1] == 1:
            value = float(np.corrcoef(found[:, 0], self._dense[:, 0])[0, 1])
        else:
            value = float((found.argmax(axis=1) == self._dense.argmax(axis=1)).mean())
        return Quality(value, divergence=self.loss(found))


Judge = VectorJudge | LogitJudge


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.maximum(norms, 1e-12)
    return unit


def _nearest(similarities: Floats) -> NDArray[np.int64]:
    """The ten best columns of every row, the diagonal left out; ties: the lower column."""
    others = similarities.astype(np.float64)
    np.fill_diagonal(others, -np.inf)
    depth = min(NEIGHBOURS, len(others) - 1)
    return np.argsort(-others, axis=1, kind="stable")[:, :depth]


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
