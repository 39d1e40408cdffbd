"""The dense model as a teacher, asked once about every training example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokprune_rt.files import atomic_file
from tokprune_rt.loading import load
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train.evaluating import run_texts
from tokprune_rt.train.masked import MaskedEncoder, Pass
from tokprune_rt.train.memory import Trimming
from tokprune_rt.train.scores import column_sums

# Sequences of a batch when attention is asked for.
_BATCH = 32


class Teacher:
    """What the dense model answers to the training examples, and which tokens matter to it.

    It does not change and has no dropout, so it is asked once for all epochs: when the first answer
    is needed, and not again by a run that goes on.

    Args:
        ask: makes "logits" and "scores", a tensor for each example, see `logits_of_all` and
            `attention_of_all`.
        path: where each is kept.
        say: receives a line when one is made.
    """

    def __init__(
        self,
        ask: Mapping[str, Callable[[], list[Tensor]]],
        path: Callable[[str], Path],
        say: Callable[[str], None],
    ) -> None:
        self._ask, self._path, self._say = ask, path, say
        self._answers: dict[str, list[Tensor]] = {}

    def prepare(self, *what: str) -> None:
        """Ask now, so that the first step does not take the time of it."""
        for each in what:
            if each not in self._answers:
                self._answers[each] = self._kept(each)

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
        self.prepare(what)
        rows = self._answers[what]
        return [rows[place] for place in run.places]

    def _kept(self, what: str) -> list[Tensor]:
        path = self._path(f"{what}.pt")
        if not path.exists():
            self._say(f"asking the dense model for {what}")
            rows = self._ask[what]()
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                torch.save(_joined(rows), file)
        joined, ends = torch.load(path, weights_only=True)
        return [joined[begin:end] for begin, end in pairwise([0, *ends.tolist()])]


def logits_of_all(folder: Path, tokens: Sequence[Tokens]) -> list[Tensor]:
    """Of the model in ``folder``, by the runtime, which is faster than a masked pass; as
    `masked.rows_of` gives them."""
    model = load(folder, "off", precision="fp32", threads=torch.get_num_threads())
    return [torch.from_numpy(np.array(rows)) for rows in run_texts(model, tokens, None).logits]


@torch.no_grad()
def attention_of_all(
    encoder: MaskedEncoder,
    inputs: Callable[[Sequence[int]], dict[str, Tensor]],
    lengths: Sequence[int],
) -> list[Tensor]:
    """What each token receives in the last layer's attention, [tokens] of every example;
    ``inputs`` makes a padded batch of some, ``lengths`` are their tokens."""
    encoder.model.eval()
    found = [torch.zeros(0)] * len(lengths)
    trimming = Trimming()
    order = np.argsort(lengths, kind="stable").tolist()
    with encoder.choosing(_Watching()):
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            _, run = encoder.run(inputs(places))
            for place, row in zip(places, run.scores[0], strict=True):
                found[place] = row[: lengths[place]].cpu().clone()
            trimming.step()
    return found


def _joined(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All rows one after another, and where each ends."""
    ends = torch.tensor([len(row) for row in rows]).cumsum(0)
    return torch.cat(rows), ends


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
