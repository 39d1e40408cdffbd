"""Progress bars for work over many texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def progress(total: int, show: bool) -> Iterator[Callable[[int], object]]:
    """Yield a function that counts finished texts; it draws a bar when tqdm is installed."""
    if not show:
        yield lambda count: None
        return
    try:
        tqdm = import_module("tqdm.auto").tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(total=total, unit="text") as bar:
        yield bar.update
