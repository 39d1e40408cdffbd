"""Real English text of every length, without shipping a data set."""

from __future__ import annotations

import functools

from tokprune_rt.bench.texts import documents


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
    """`count` sentences and documents, evenly taken over the whole range of lengths."""
    pool = sorted({*sentences(), *documents()}, key=lambda text: (len(text), text))
    step = len(pool) / count
    return [pool[int(i * step)] for i in range(count)]
