"""What self-distillation moves towards: the vectors and states of the dense model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokprune_rt.train.data import Encoded
from tokprune_rt.train.embedding import Embedder
from tokprune_rt.train.masked import exactly
from tokprune_rt.train.merging import Rows, means
from tokprune_rt.train.tasks import Floats, divergence


class DenseTeacher:
    """The model before, which nothing changes."""

    def __init__(self, embedder: Embedder, device: str) -> None:
        self._embedder = embedder
        nn.Module.to(embedder.model.eval(), device)

    @torch.no_grad()
    def look(self, run: Rows) -> tuple[Tensor, Tensor]:
        """Of a student's inputs: vectors [B, e] of length 1, and states [B, tokens, d]."""
        with exactly(run.real), self._embedder.choosing(None):
            output, passed = self._embedder.run(run.inputs)
        return functional.normalize(output.logits, dim=-1), passed.notes["state"]


@dataclass(frozen=True)
class TowardsDense:
    """Vectors near the dense ones, with the same neighbours, from rows near the dense ones.

    Attributes:
        ranking: weight of the agreement about neighbours: each vector is a query on the dense index
            of the batch's other texts.
        temperature: of the similarities there.
        rows: weight of the rows: each should be the mean of the dense states of its tokens. Their
            mean is the vector, but there are many more of them to learn from.
    """

    ranking: float
    temperature: float
    rows: float

    metric = "cosine"

    def aligned(self, targets: Tensor, real: Tensor) -> Tensor:
        """The targets as they are."""
        return targets

    def loss(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Of vectors and dense ones of length 1, [B, e]; mean over a batch."""
        found = functional.normalize(vectors.float(), dim=-1)
        loss = 1 - (found * dense).sum(dim=-1).mean()
        if len(found) < 3 or not self.ranking:
            return loss
        others = ~torch.eye(len(found), dtype=torch.bool, device=found.device)
        rows = [
            (queries @ dense.T)[others].view(len(found), -1) / self.temperature
            for queries in (found, dense)
        ]
        return loss + self.ranking * divergence(rows[0], rows[1], 1.0)

    def distance(self, vectors: Tensor, run: Rows, dense: Tensor, states: Tensor) -> Tensor:
        """The loss of a pass; ``dense`` and ``states`` are the teacher's."""
        loss = self.loss(vectors, dense)
        if not self.rows:
            return loss
        wanted, weight = means(run, states), run.size * run.alive
        apart = ((run.notes["state"] - wanted).square().sum(dim=-1) * weight).sum()
        return loss + self.rows * apart / (wanted.square().sum(dim=-1) * weight).sum()

    def remark(self, vectors: Sequence[Floats]) -> str | None:
        """See `Task`."""
        return None

    def score(self, vectors: Sequence[Floats], data: Encoded) -> float:
        """Mean cosine to the dense vectors, in points."""
        found = functional.normalize(torch.from_numpy(np.stack(vectors)), dim=-1)
        return 100 * float((found * data.targets).sum(dim=-1).mean())
