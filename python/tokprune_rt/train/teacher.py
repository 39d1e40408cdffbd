"""The dense model as a teacher, asked once about every training example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokprune_rt.files import atomic_file
from tokprune_rt.train.masked import MaskedEncoder, Pass, rows_of
from tokprune_rt.train.memory import Trimming
from tokprune_rt.train.scores import column_sums


class Teacher:
    """What the dense model answers to the training examples, and which tokens matter to it.

    It does not change and has no dropout, so one pass over the examples serves all epochs: made
    when the first answer is asked for, and kept on disk for a run that goes on.

    Args:
        encoder: the fine-tuned model.
        inputs: makes a padded batch of the examples at these places.
        lengths: tokens of every example.
        path: where the answers are kept.
        say: receives a line when the pass begins.
        batch_size: sequences of a batch of that pass.
    """

    def __init__(
        self,
        encoder: MaskedEncoder,
        inputs: Callable[[Sequence[int]], dict[str, Tensor]],
        lengths: Sequence[int],
        path: Path,
        say: Callable[[str], None],
        batch_size: int = 32,
    ) -> None:
        encoder.model.eval()
        self._encoder, self._inputs, self._lengths = encoder, inputs, list(lengths)
        self._path, self._say, self._batch_size = path, say, batch_size
        self._answers: dict[str, list[Tensor]] | None = None

    def logits(self, run: Pass, student: Tensor) -> Tensor:
        """For the examples of ``run``, in the form of ``student``'s, see `masked.logits_of`."""
        rows = self._of("logits", run)
        if student.ndim == 3:
            return _padded(rows, student.shape[1], -1e4).to(student.device)
        return (torch.stack(rows) if rows[0].ndim == 1 else torch.cat(rows)).to(student.device)

    def scores(self, run: Pass) -> Tensor:
        """What each token receives in the last layer's attention, [B, S]; 0 for padding."""
        return _padded(self._of("scores", run), run.real.shape[1], 0.0).to(run.real.device)

    def _of(self, what: str, run: Pass) -> list[Tensor]:
        if self._answers is None:
            self._answers = self._kept() or self._asked()
        rows = self._answers[what]
        return [rows[place] for place in run.places]

    def _kept(self) -> dict[str, list[Tensor]] | None:
        if not self._path.exists():
            return None
        kept = torch.load(self._path, weights_only=True)
        return {name: _cut(rows, ends) for name, (rows, ends) in kept.items()}

    @torch.no_grad()
    def _asked(self) -> dict[str, list[Tensor]]:
        self._say(f"asking the dense model about {len(self._lengths)} examples")
        found: dict[str, list[Tensor]] = {}
        trimming = Trimming()
        order = np.argsort(self._lengths, kind="stable").tolist()
        with self._encoder.choosing(_Watching()):
            for start in range(0, len(order), self._batch_size):
                places = order[start : start + self._batch_size]
                output, run = self._encoder.run(self._inputs(places))
                scores = [row[:end] for row, end in zip(run.scores[0], run.lengths, strict=True)]
                for name, rows in (("logits", rows_of(output, run.lengths)), ("scores", scores)):
                    room = found.setdefault(name, self._room(name, rows[0]))
                    for place, row in zip(places, rows, strict=True):
                        room[place].copy_(row)
                trimming.step()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path) as file:
            torch.save({name: _joined(rows) for name, rows in found.items()}, file)
        return found

    def _room(self, name: str, row: Tensor) -> list[Tensor]:
        """For rows like this one."""
        if name == "logits" and row.ndim == 1:
            return list(torch.empty(len(self._lengths), len(row)))
        return list(torch.empty(sum(self._lengths), *row.shape[1:]).split(self._lengths))


def _joined(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All rows one after another, and where each ends."""
    ends = torch.tensor([len(row) for row in rows]).cumsum(0)
    return torch.cat(rows), ends


def _cut(rows: Tensor, ends: Tensor) -> list[Tensor]:
    return [rows[start:end] for start, end in pairwise([0, *ends.tolist()])]


def _padded(rows: list[Tensor], length: int, value: float) -> Tensor:
    found = torch.full((len(rows), length, *rows[0].shape[1:]), value)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found


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
