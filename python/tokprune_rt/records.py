"""Records out of lines: JSON lines and tables."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
"""What a file's ending says about its format."""

# The csv module's own limit is less than a long document.
_LONGEST_CELL = 1 << 26
# Characters of a field's name that a message shows.
_NAME = 30


def is_packed(path: Path) -> bool:
    """Whether the file is compressed with gzip, as its name says."""
    return path.suffix.lower() == ".gz"


def file_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, also of a packed one, with their line feeds; nothing else ends one.

    Raises OSError, and ValueError naming the line for what is not UTF-8, the file for a damaged
    ``.gz``. A byte order mark is left out.
    """
    number = 0
    with gzip.open(path, "rb") if is_packed(path) else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not UTF-8 text: {error.reason} at byte {error.start}"
            ) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error


def json_records(lines: Iterable[str], label: str) -> Iterator[tuple[int, Record]]:
    """Line number and object of every line that is not blank.

    Raises ValueError naming ``label`` and the line for what is no JSON object.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{label}, line {number}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise ValueError(f"{label}, line {number}: found {kind}, not a JSON object")
        yield number, record


def table_rows(lines: Iterable[str], label: str, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Last line and cells of every row of a ``"csv"`` or ``"tsv"`` that is not blank.

    Quotes in a ``"tsv"`` are part of its texts, as in GLUE's files. ``lines`` keep their ends.
    Raises ValueError naming ``label`` and the line for a bad row.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    if kind == "tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{label}, line {reader.line_num}: {error}") from error


def table_records(lines: Iterable[str], label: str, kind: str) -> Iterator[tuple[int, Record]]:
    """The same of a table whose first row names the columns, as cells by name; those that a short
    row lacks are None. ValueError for a row with more cells than columns, too."""
    header: list[str] | None = None
    for number, row in table_rows(lines, label, kind):
        if header is None:
            header = [name.strip() for name in row]
            continue
        if len(row) > len(header):
            raise ValueError(f"{label}, line {number}: more cells than the header has")
        yield number, dict(zip(header, [*row, *[None] * (len(header) - len(row))], strict=True))


def text_of(record: Record, field: str, where: str, *, header: bool = False) -> str:
    """The text under ``field``; ValueError naming ``where`` and what is there instead.

    ``header``: the names come from a file's first line.
    """
    value = record.get(field)
    if isinstance(value, str):
        return value
    if field in record:
        raise ValueError(f"{where}: {field!r} is {type(value).__name__}, not a text")
    names = ", ".join(repr(name if len(name) <= _NAME else name[:_NAME] + "...") for name in record)
    hint = "; the first line names the columns" if header else ""
    raise ValueError(f"{where}: no field {field!r}, only {names or 'nothing'}{hint}")
