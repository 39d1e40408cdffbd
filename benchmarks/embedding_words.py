"""What becomes of negations, numbers and named entities when tokens are merged or dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from embedding_policies import embed
from numpy.typing import NDArray

from tokprune_rt import Model, _core
from tokprune_rt.outputs import ForwardOutput, make_output
from tokprune_rt.tokenizer import Tokens

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


@dataclass
class Fates:
    """By class; ``unclear``: texts whose sizes could not be told, which are left out."""

    by_class: dict[str, Fate] = field(default_factory=lambda: {name: Fate() for name in CLASSES})
    unclear: int = 0


def sizes(output: ForwardOutput, index: int, length: int) -> NDArray[np.int64] | None:
    """How many tokens each row of a text stands for, int64 [kept].

    The embedding is the mean of the rows weighted by size, scaled to length 1: a linear system with
    one solution while there are fewer rows than dimensions. None where it is too badly conditioned
    to give whole numbers.
    """
    rows = output.hidden[index].astype(np.float64)
    pooled = output.pooled
    assert pooled is not None
    found, *_ = np.linalg.lstsq(rows.T, pooled[index].astype(np.float64), rcond=None)
    found *= length / found.sum()
    whole = np.rint(found).astype(np.int64)
    good = np.abs(found - whole).max() < 0.2 and whole.min() > 0 and whole.sum() == length
    return whole if good else None


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


def fates(model: Model, plan: _core.Plan | None, texts: Iterable[Words], *, merging: bool) -> Fates:
    """Run texts and count what is left; ``merging``: rows may stand for several tokens."""
    result = Fates()
    for part in _parts(list(texts)):
        encodings = model.tokenizer.encodings([" ".join(words) for words, _ in part])
        tokens = [model.tokenizer.tokens(encoding) for encoding in encodings]
        output = _forward(model, tokens, plan)
        for i, (words, encoding) in enumerate(zip(part, encodings, strict=True)):
            length = len(encoding.ids)
            size = np.zeros(length, np.int64)
            own = sizes(output, i, length) if merging else np.ones(len(output.positions[i]))
            if own is None:
                result.unclear += 1
                continue
            size[output.positions[i]] = own
            for names, stands_for in zip(classes(words, encoding.offsets), size, strict=True):
                for name in names:
                    fate = result.by_class[name]
                    fate.count += 1
                    fate.gone += int(stands_for == 0)
                    fate.leading += int(stands_for > 1)
    return result


def _parts(texts: list[Words]) -> Iterator[list[Words]]:
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


def _forward(model: Model, tokens: list[Tokens], plan: _core.Plan | None) -> ForwardOutput:
    result, bounds = model.engine.forward(tokens, "hidden", plan, normalize=True)
    config = model.config
    sizes = {"hidden": config.hidden, "intermediate": config.intermediate}
    return make_output(result, bounds, **sizes, token_head=False)


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
