"""Real English text that every machine has: the documentation strings of the standard library.

Sentences and paragraphs of very different lengths, without shipping a data set.
"""

from __future__ import annotations

import ast
import functools
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def _docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                doc = ast.get_docstring(node)
                if doc:
                    yield doc


@functools.cache
def documents() -> tuple[str, ...]:
    """Whole documentation strings: one word to several pages each, distinct."""
    return tuple(dict.fromkeys(_docstrings()))


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
