"""Rows of Hugging Face data sets: by name, or from a folder of ``save_to_disk``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PREFIX = "hf:"
# One of them lies in a folder of save_to_disk: of a data set, of several splits.
_SIGNS = ("state.json", "dataset_dict.json")


def is_dataset(source: str | os.PathLike[str]) -> bool:
    """Whether this names a data set instead of a file."""
    return os.fspath(source).startswith(PREFIX) or Path(source).is_dir()


def dataset_rows(source: str | os.PathLike[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of ``hf:NAME[/CONFIG]:SPLIT`` or of a folder, each with its place.

    Numbers that stand for class names become the names.

    Raises:
        ImportError: the package `datasets` is missing.
        ValueError: the name is incomplete, or the folder holds several splits or no data set.
    """
    name = os.fspath(source)
    data = _named(name) if name.startswith(PREFIX) else _stored(Path(source))
    classes = {column: found for column, kind in data.features.items() if (found := _names(kind))}
    for number, row in enumerate(data):
        where = f"{name}, row {number}"
        for column, names in classes.items():
            row[column] = _spelled(row[column], names, f"{where}: column {column!r}")
        yield where, row


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{error}; data sets need: pip install datasets") from error
    return datasets


def _named(name: str) -> Any:
    # A split may be a slice, with a colon of its own.
    path, _, split = name.removeprefix(PREFIX).partition(":")
    parts = path.split("/")
    if not split or not all(parts) or len(parts) > 3:
        raise ValueError(
            f"{name}: write hf:NAME[/CONFIG]:SPLIT, for example hf:stanfordnlp/sst2:train"
        )
    datasets = _datasets()
    if len(parts) == 3:
        return datasets.load_dataset("/".join(parts[:2]), parts[2], split=split)
    try:
        return datasets.load_dataset(path, split=split)
    except datasets.exceptions.DatasetNotFoundError:
        # A name without an owner, and its configuration.
        if len(parts) == 1:
            raise
        return datasets.load_dataset(parts[0], parts[1], split=split)


def _stored(folder: Path) -> Any:
    if not any((folder / name).exists() for name in _SIGNS):
        raise ValueError(
            f"{folder}: a folder, but not one that datasets' save_to_disk wrote; give a file"
        )
    found = _datasets().load_from_disk(str(folder))
    if isinstance(found, Mapping):
        splits = ", ".join(str(folder / split) for split in found)
        raise ValueError(f"{folder} holds several splits; give one of {splits}")
    return found


def _names(kind: Any) -> list[str] | None:
    """The class names of a column of classes, or of lists of them."""
    names = getattr(getattr(kind, "feature", kind), "names", None)
    return list(names) if names is not None else None


def _spelled(value: Any, names: list[str], where: str) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_spelled(item, names, where) for item in value]
    if not 0 <= value < len(names):
        raise ValueError(f"{where}: {value} is none of the {len(names)} classes")
    return names[value]
