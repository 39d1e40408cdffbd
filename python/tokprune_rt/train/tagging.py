"""Token classification: words with tags, entities and their score.

The runtime tags running text, so words are joined with blanks; the first piece of a word stands for
it, in training and in the score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tokprune_rt.tokenizer import Tokenizer
from tokprune_rt.train.data import IGNORED, Data, Encoded, Sentences
from tokprune_rt.train.tasks import Floats, Task, check_labels, divergence

OUTSIDE = "O"
METRICS = ("entity-f1", "accuracy")


@dataclass(frozen=True)
class TagTruth:
    """What the score of tagging needs: for each sentence the tags of its words, and the first token
    of every word, -1 for one that the model does not see."""

    tags: list[list[str]]
    pieces: list[NDArray[np.int64]]


@dataclass(frozen=True)
class TagTask(Task):
    """Tags of words; metrics: `METRICS`.

    entity-f1 counts an entity as found when all of its words and its type are right. A word beyond
    the model's length counts as outside any entity, and as wrong in accuracy.
    """

    kind: ClassVar[str] = "token-classification"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(
                f"unknown metric {self.metric!r} of tagging; known: {', '.join(METRICS)}"
            )
        if self.metric == METRICS[0] and not are_entities(self.labels):
            raise ValueError(
                f"metric {self.metric!r} needs tags O, B-... and I-..., found: "
                f"{', '.join(map(repr, self.labels))}"
            )

    def encode(self, data: Data, tokenizer: Tokenizer) -> Encoded:
        found = self._expected(data, Sentences)
        place = {label: index for index, label in enumerate(self.labels)}
        self._check_tags(found)
        encodings = tokenizer.encodings([" ".join(words) for words in found.words])
        tokens = [tokenizer.tokens(encoding) for encoding in encodings]
        pieces = [
            first_pieces(words, np.array(encoding.offsets), np.array(encoding.special_tokens_mask))
            for words, encoding in zip(found.words, encodings, strict=True)
        ]
        targets = torch.full((len(tokens), max(map(len, tokens))), IGNORED)
        for row, (tags, first) in enumerate(zip(found.tags, pieces, strict=True)):
            seen = first >= 0
            classes = torch.tensor([place[tag] for tag in tags])
            targets[row, first[seen]] = classes[torch.from_numpy(seen)]
        lost = [int((first < 0).sum()) for first in pieces]
        note = None
        if any(lost):
            note = (
                f"{sum(lost)} words of {sum(map(bool, lost))} sentences lie beyond "
                f"{tokenizer.max_length} tokens (or have none) and count as {OUTSIDE}"
            )
        return Encoded(tokens, targets, TagTruth(found.tags, pieces), note)

    def _check_tags(self, data: Sentences) -> None:
        # Without places, the zip is empty.
        sentences = zip(data.places, data.tags, strict=False)
        where = [f"{place}, word {i + 1}" for place, tags in sentences for i in range(len(tags))]
        check_labels((tag for tags in data.tags for tag in tags), where, self.labels)

    def aligned(self, targets: Tensor, real: Tensor) -> Tensor:
        return targets[:, : real.shape[1]][real]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED)

    def distance(self, logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
        return divergence(logits, teacher, temperature)

    def score(self, logits: Sequence[Floats], data: Encoded) -> float:
        truth: TagTruth = data.truth
        pairs = zip(logits, truth.pieces, strict=True)
        found = [self._tags(rows, first) for rows, first in pairs]
        if self.metric == METRICS[0]:
            seen = [[tag or OUTSIDE for tag in tags] for tags in found]
            return 100 * entity_f1(seen, truth.tags)
        right = [
            tag == wanted
            for tags, gold in zip(found, truth.tags, strict=True)
            for tag, wanted in zip(tags, gold, strict=True)
        ]
        return 100 * float(np.mean(right))

    def _tags(self, rows: Floats, first: NDArray[np.int64]) -> list[str | None]:
        """The tag of every word of a sentence; None for a word without tokens."""
        best = rows.argmax(axis=1)
        return [self.labels[best[token]] if token >= 0 else None for token in first]


def first_pieces(
    words: Sequence[str], offsets: NDArray[np.int64], special: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The first token of each of ``words``, joined with blanks; -1 for a word without tokens.

    ``offsets`` [n, 2] are the tokens' characters, ``special`` [n] is 1 for tokens of no text. A
    token that spans several words belongs to the first.
    """
    lengths = np.array([len(word) for word in words])
    ends = np.cumsum(lengths + 1) - 1
    found = np.full(len(words), -1)
    for token in np.flatnonzero((special == 0) & (offsets[:, 0] < offsets[:, 1]))[::-1]:
        start, end = offsets[token]
        # The first word that ends behind it; a token may begin with the blank before its word.
        word = int(np.searchsorted(ends, start, side="right"))
        if word < len(words) and ends[word] - lengths[word] < end:
            found[word] = token
    return found


def are_entities(labels: Iterable[str]) -> bool:
    """Whether these are IOB tags."""
    names = set(labels) - {OUTSIDE}
    return bool(names) and all(name.startswith(("B-", "I-")) for name in names)


def default_metric(labels: Iterable[str]) -> str:
    """Entities count if there are any."""
    return METRICS[0 if are_entities(labels) else 1]


def tag_task(tags: Iterable[str], metric: str | None) -> TagTask:
    """The task of a training set: its tags in alphabetical order, O first; a type of entity that
    has one of B- and I- gets the other, too."""
    names = set(tags)
    if are_entities(names):
        names |= {prefix + name[2:] for name in names - {OUTSIDE} for prefix in ("B-", "I-")}
        names.add(OUTSIDE)
    if len(names) < 2:
        raise ValueError(f"tagging needs 2 tags or more, found {sorted(names)}")
    labels = tuple(sorted(names, key=lambda name: (name != OUTSIDE, name)))
    return TagTask(labels, metric or default_metric(labels))


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first word, word after the last, type) of every entity.

    An entity begins with B-, or with an I- that does not continue one of its type.
    """
    found = set()
    begun, name = 0, ""
    for index, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, of = tag.partition("-")
        if name and (prefix != "I" or of != name):
            found.add((begun, index, name))
            name = ""
        if not name and tag != OUTSIDE:
            begun, name = index, of
    return found


def entity_f1(found: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """F1 of the entities of all sentences; 0 when neither side has one."""
    right = total = 0
    for tags, gold in zip(found, wanted, strict=True):
        ours, theirs = entities(tags), entities(gold)
        right += len(ours & theirs)
        total += len(ours) + len(theirs)
    return 2 * right / total if total else 0.0
