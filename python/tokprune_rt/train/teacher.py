"""The dense model as a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from tokprune_rt.train.masked import MaskedEncoder, Pass, logits_of
from tokprune_rt.train.scores import column_sums


class Teacher:
    """What the student should answer, and which tokens matter to the dense model.

    Args:
        encoder: the fine-tuned model.
    """

    def __init__(self, encoder: MaskedEncoder) -> None:
        encoder.model.eval()
        self._encoder = encoder

    @torch.no_grad()
    def logits(self, run: Pass) -> Tensor:
        """Logits of a student's inputs, as `logits_of` gives them."""
        return self.look(run)[0]

    @torch.no_grad()
    def look(self, run: Pass) -> tuple[Tensor, Tensor]:
        """The same, and what each token receives in the last layer's attention, [B, S]."""
        with self._encoder.choosing(_Watching()):
            output, passed = self._encoder.run(run.inputs)
        return logits_of(output, passed.real), passed.scores[0]


class _Watching:
    """Drops nothing; keeps the last layer's scores."""

    def before_layer(self, run: Pass, layer: int, hidden: Tensor) -> None:
        pass

    def after_softmax(
        self, run: Pass, layer: int, probs: Tensor, values: Tensor, hidden: Tensor
    ) -> None:
        run.scores = [column_sums(probs, run.alive)]

    def after_layer(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        return hidden
