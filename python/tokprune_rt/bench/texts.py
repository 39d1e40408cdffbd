"""Real English text that every machine has: the documentation strings of the standard library."""

from __future__ import annotations

import ast
import functools
import random
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
    """Distinct documentation strings: from a few words to several pages each."""
    return tuple(dict.fromkeys(_docstrings()))


def mixed_documents(count: int, seed: int = 0) -> list[str]:
    """``count`` documents in random order, with the lengths that such texts have.

    The texts differ from one Python version to the next. Raises ValueError when there are fewer.
    """
    pool = documents()
    if count > len(pool):
        raise ValueError(f"there are {len(pool)} documents, {count} were asked for")
    return random.Random(seed).sample(pool, count)
