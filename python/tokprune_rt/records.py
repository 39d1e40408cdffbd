"""Records out of lines: JSON lines and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any

Record = dict[str, Any]

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
"""What a file's ending says about its format."""

# The csv module's own limit is less than a long document.
_LONGEST_CELL = 1 << 26
# Characters of a field's name that a message shows.
_NAME = 30


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


def table_records(lines: Iterable[str], label: str, kind: str) -> Iterator[tuple[int, Record]]:
    """Last line and cells by column of every row of a ``"csv"`` or ``"tsv"`` with a header.

    Quotes in a ``"tsv"`` are part of its texts, as in GLUE's files. ``lines`` keep their ends.
    Raises ValueError naming ``label`` and the line for a bad row.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    if kind == "tsv":
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            if None in row:
                raise ValueError(f"{label}, line {reader.line_num}: more cells than the header has")
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{label}, line {reader.line_num}: {error}") from error


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
