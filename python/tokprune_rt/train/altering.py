"""Altered copies of training texts, for a teacher to answer (data augmentation, as TinyBERT does,
arXiv 1909.10351).

A model that learns to answer from fewer tokens soon knows a small training set by heart. What the
dense model says to texts nobody labelled teaches it the rest. Words are left out or replaced by
words of other texts; of a pair the second text may also become a copy of the first, or another
pair's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokprune_rt.tokenizer import TextOrPair

# Shares of a text's words that change, drawn for each; half of them are left out.
_SHARES = (0.1, 0.2, 0.3)
# What becomes of a pair: both texts change; one becomes a changed copy of either; the second is
# another pair's.
_BOTH, _COPY = 0.35, 0.8


def altered(texts: Sequence[TextOrPair], copies: int, seed: int) -> list[TextOrPair]:
    """``copies`` altered copies of every text or pair, one round after another; the same for the
    same ``seed``."""
    generator = np.random.default_rng([seed, copies])
    single = [one for text in texts for one in ([text] if isinstance(text, str) else text)]
    words = [word for text in single for word in _words(text)[0]]

    def changed(text: str) -> str:
        own, between = _words(text)
        share = generator.choice(_SHARES)
        drawn = generator.random(len(own))
        found = [
            words[generator.integers(len(words))] if place < share else word
            for word, place in zip(own, drawn, strict=True)
            if place >= share / 2
        ]
        return between.join(found) or text

    def variant(text: TextOrPair) -> TextOrPair:
        if isinstance(text, str):
            return changed(text)
        first, second = text
        kind = generator.random()
        if kind < _BOTH:
            return changed(first), changed(second)
        if kind < _COPY:
            copy = changed(text[generator.integers(2)])
            return (first, copy) if generator.random() < 0.5 else (copy, second)
        other = texts[int(generator.integers(len(texts)))]
        return first, other if isinstance(other, str) else other[generator.integers(2)]

    return [variant(text) for _ in range(copies) for text in texts]


def _words(text: str) -> tuple[list[str], str]:
    """The words of a text and what stands between them; characters where there are no spaces."""
    found = text.split()
    return (found, " ") if len(found) > 1 else (list(text), "")
