"""What becomes of negations, numbers and named entities when tokens are merged or dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from embedding_policies import embed

from tokprune_rt import Model, _core

CLASSES = ("negation", "number", "entity", "any token")
NEGATIONS = frozenset({"not", "no", "never", "nor", "cannot"})
_BATCH = 32

# words of a text, and for each its entity tag ("O": none; empty: not known)
Words = tuple[Sequence[str], Sequence[str]]


@dataclass
class Fate:
    """Counts of a class of tokens after the last layer.

    Attributes:
        gone: merged into another, or dropped.
        leading: others were merged into it.
    """

    count: int = 0
    gone: int = 0
    leading: int = 0

    @property
    def kept(self) -> float:
        return 1 - self.gone / max(1, self.count)

    @property
    def alone(self) -> float:
        return self.kept - self.leading / max(1, self.count)


def classes(words: Words, offsets: Sequence[tuple[int, int]]) -> list[set[str]]:
    """The classes of every token of " ".join(words), from its characters' positions."""
    owner: list[int] = []
    for i, word in enumerate(words[0]):
        owner += [i] * (len(word) + 1)
    found = []
    for begin, end in offsets:
        own: set[str] = set()
        if end > begin:
            word = words[0][owner[begin]]
            tag = words[1][owner[begin]] if words[1] else "O"
            own.add("any token")
            low = word.lower()
            last = end == len(owner) - 1 or owner[begin] != owner[end + 1]
            if low in NEGATIONS or (low.endswith("n't") and last):  # of don't, its t
                own.add("negation")
            if any(c.isdigit() for c in word):
                own.add("number")
            if tag != "O" and word[:1].isupper():
                own.add("entity")
        found.append(own)
    return found


def fates(model: Model, plan: _core.Plan | None, texts: Iterable[Words]) -> dict[str, Fate]:
    """Run texts and count, by class, what is left."""
    result = {name: Fate() for name in CLASSES}
    for part in _parts(list(texts)):
        encodings = model.tokenizer.encodings([" ".join(words) for words, _ in part])
        tokens = [model.tokenizer.tokens(encoding) for encoding in encodings]
        found, _ = model.engine.forward(tokens, "hidden", plan, trace=True)
        assert found["trace_rows"] is not None
        for words, encoding, rows in zip(part, encodings, found["trace_rows"][-1], strict=True):
            # How many tokens each one's own row stands for.
            size = np.bincount(rows[rows >= 0], minlength=len(rows))
            for names, stands_for in zip(classes(words, encoding.offsets), size, strict=True):
                for name in names:
                    fate = result[name]
                    fate.count += 1
                    fate.gone += int(stands_for == 0)
                    fate.leading += int(stands_for > 1)
    return result


def _parts(texts: list[Words]) -> Iterator[list[Words]]:
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


def negation_felt(model: Model, plan: _core.Plan | None, texts: Iterable[Words]) -> float:
    """How much more a vector moves (1 - cosine) without negations than without other words.

    As many other words, drawn at random, are taken out of the same texts.
    """
    rng = np.random.default_rng(0)
    sides: list[list[str]] = [[], [], []]
    for words, _ in texts:
        negative = [i for i, word in enumerate(words) if word.lower() in {*NEGATIONS, "n't"}]
        others = [i for i in range(len(words)) if i not in negative]
        if not negative or len(others) <= len(negative):
            continue
        picked = set(rng.choice(others, len(negative), replace=False).tolist())
        for side, out in zip(sides, (set(), set(negative), picked), strict=True):
            side.append(" ".join(word for i, word in enumerate(words) if i not in out))
    whole, *cut = (embed(model, model.tokenizer.tokenize(side), plan).vectors for side in sides)
    moved = [1 - (whole.astype(np.float64) * part).sum(axis=1).mean() for part in cut]
    return float(moved[0] / moved[1])
