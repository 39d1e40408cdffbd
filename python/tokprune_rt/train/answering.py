"""Extractive question answering: windows, targets, and the answers that the runtime would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokprune_rt.tasks.answer import best_answers, windows_of
from tokprune_rt.tokenizer import Tokenizer, Window
from tokprune_rt.train import squad
from tokprune_rt.train.data import Data, Encoded, Question, Questions
from tokprune_rt.train.tasks import Floats, Task, divergence


@dataclass(frozen=True)
class AnswerTruth:
    """What the score of answers needs: the questions and the windows of each, in order."""

    questions: list[Question]
    windows: list[list[Window]]

    @property
    def impossible(self) -> bool:
        """Whether a question may have no answer: then the empty one competes."""
        return any(not question.answers for question in self.questions)


@dataclass(frozen=True)
class AnswerTask(Task):
    """The span of a context that answers a question; metrics: those of `squad.METRICS`.

    A window without the answer, or with a part of it, is to point at its first token.
    """

    kind: ClassVar[str] = "question-answering"

    def __post_init__(self) -> None:
        if self.metric not in squad.METRICS:
            raise ValueError(
                f"unknown metric {self.metric!r} of answers; known: {', '.join(squad.METRICS)}"
            )

    def encode(self, data: Data, tokenizer: Tokenizer) -> Encoded:
        items = self._expected(data, Questions).items
        windows = []
        for item in items:
            try:
                found = windows_of(tokenizer, item.question, item.context)
            except ValueError as error:
                raise ValueError(f"question {item.id}: {error}") from error
            if not found:
                raise ValueError(f"question {item.id}: its context has no tokens")
            windows.append(found)
        pairs = zip(items, windows, strict=True)
        targets = [_target(item, window) for item, found in pairs for window in found]
        tokens = [window.tokens for found in windows for window in found]
        return Encoded(tokens, torch.tensor(targets), AnswerTruth(items, windows))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        sides = [functional.cross_entropy(logits[..., i].float(), targets[:, i]) for i in (0, 1)]
        return torch.stack(sides).mean()

    def distance(self, logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
        sides = [divergence(logits[..., i], teacher[..., i], temperature) for i in (0, 1)]
        return torch.stack(sides).mean()

    def score(self, logits: Sequence[Floats], data: Encoded) -> float:
        truth: AnswerTruth = data.truth
        rows = iter(logits)
        scores = []
        for item, windows in zip(truth.questions, truth.windows, strict=True):
            (best,) = best_answers(
                windows,
                [next(rows) for _ in windows],
                item.context,
                handle_impossible_answer=truth.impossible,
            )
            wanted = (text for text, _ in item.answers)
            scores.append(squad.best(self.metric, best["answer"], wanted))
        return 100 * float(np.mean(scores))


def _target(item: Question, window: Window) -> tuple[int, int]:
    """First and last token of the first answer that is given; (0, 0) if it is not in the window."""
    context = np.flatnonzero(window.in_context)
    if not item.answers or len(context) == 0:
        return 0, 0
    text, start = item.answers[0]
    end = start + len(text)
    offsets = window.offsets[context]
    inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
    if not inside.any() or offsets[0, 0] > start or offsets[-1, 1] < end:
        return 0, 0
    tokens = context[inside]
    return int(tokens[0]), int(tokens[-1])
