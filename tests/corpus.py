"""Real English text of every length, without shipping a data set."""

from __future__ import annotations

import functools
import os

from tokprune_rt.bench.texts import documents

# Two of them are near each other and the query.
TEXTS = [
    "The cat sleeps on the warm mat.",
    "Interest rates rose again this quarter.",
    "A kitten naps in the sun.",
    "The striker scored twice before half-time.",
]
QUERY = "a sleeping cat"


def enough(count: int) -> int:
    """`count`, or an eighth of it when an instruction-set level is forced.

    The models compared with take most of the time, and levels differ by rounding only: the full
    numbers run once, at the best level.
    """
    return count // 8 if os.environ.get("TOKPRUNE_ISA") else count


@functools.cache
def sentences() -> tuple[str, ...]:
    """Single sentences and paragraphs, 3 to some hundred words each, distinct."""
    found = []
    for document in documents():
        for paragraph in document.split("\n\n"):
            text = " ".join(paragraph.split())
            if len(text.split()) >= 3:
                found.append(text)
    return tuple(dict.fromkeys(found))


def spread(count: int) -> list[str]:
    """`count` sentences and documents, evenly over the range of lengths, ends included."""
    pool = sorted({*sentences(), *documents()}, key=lambda text: (len(text), text))
    step = (len(pool) - 1) / (count - 1)
    return [pool[round(i * step)] for i in range(count)]
