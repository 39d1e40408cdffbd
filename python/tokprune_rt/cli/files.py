"""Reading texts, and writing results so that they appear complete or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tokprune_rt.files import atomic_file

FORMATS = ("text", "jsonl", "csv", "tsv")
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
Record = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where records come from; messages name `label` and the line."""

    label: str
    content: str


def read_source(name: str) -> Source:
    """A file's content, or standard input for ``-``.

    Raises OSError, and ValueError for what is not UTF-8.
    """
    label = "standard input" if name == "-" else name
    raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        # A file from elsewhere may start with a byte order mark.
        return Source(label, raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{label} is not UTF-8 text: {error.reason} at byte {error.start}") from (
            error
        )


def input_format(name: str, stated: str | None) -> str:
    """The format stated, or the one that the file's name says; ``"text"`` for everything else."""
    if stated is None:
        return _SUFFIXES.get(Path(name).suffix.lower(), "text")
    if stated not in FORMATS:
        raise ValueError(f"unknown format {stated!r}; supported are {', '.join(FORMATS)}")
    return stated


def lines_of(content: str) -> list[str]:
    """Lines without their ends; only line feeds end a line, as in other command-line tools."""
    lines = content.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_records(name: str, stated: str | None, field: str) -> list[Record]:
    """The records of a file: a dict per line or row, the text under ``field``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not what its format says, or a record lacks ``field``; names the line.
    """
    kind = input_format(name, stated)
    source = read_source(name)
    if kind == "text":
        return [{field: line} for line in lines_of(source.content)]
    records = _json_lines(source) if kind == "jsonl" else _table(source, kind)
    found = []
    for line, record in records:
        if not isinstance(record.get(field), str):
            problem = (
                f"{field!r} is {type(record[field]).__name__}, not a text"
                if field in record
                else f"no field {field!r}, only {', '.join(map(repr, record)) or 'nothing'}"
            )
            raise ValueError(f"{source.label}, line {line}: {problem}")
        found.append(record)
    return found


def _json_lines(source: Source) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(lines_of(source.content), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{source.label}, line {number}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise ValueError(f"{source.label}, line {number}: found {kind}, not a JSON object")
        yield number, record


def _table(source: Source, kind: str) -> Iterator[tuple[int, Record]]:
    reader = csv.DictReader(
        io.StringIO(source.content, newline=""),
        dialect="excel-tab" if kind == "tsv" else "excel",
        strict=True,
    )
    try:
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{source.label}, line {reader.line_num}: more cells than the header has"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{source.label}, line {reader.line_num}: {error}") from error


@contextlib.contextmanager
def output_file(name: str) -> Iterator[BinaryIO]:
    """Standard output for ``-``, else `atomic_file`."""
    if name == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with atomic_file(Path(name)) as file:
        yield file


def json_line(record: Any) -> bytes:
    """One line of JSON, in UTF-8."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"
