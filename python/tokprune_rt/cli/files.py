"""Reading texts, and writing results so that they appear complete or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tokprune_rt.files import atomic_file
from tokprune_rt.records import SUFFIXES, Record, json_records, table_records, text_of

FORMATS = ("text", "jsonl", "csv", "tsv")


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
        hint = "; tokprune embed reads .gz" if name.endswith(".gz") else ""
        problem = f"{label} is not UTF-8 text: {error.reason} at byte {error.start}{hint}"
        raise ValueError(problem) from error


def input_format(name: str, stated: str | None) -> str:
    """The format stated, or the one that the file's name says; ``"text"`` for everything else."""
    if stated is None:
        return SUFFIXES.get(Path(name).suffix.lower(), "text")
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
    if kind == "jsonl":
        records = json_records(lines_of(source.content), source.label)
    else:
        records = table_records(io.StringIO(source.content, newline=""), source.label, kind)
    found = []
    for line, record in records:
        text_of(record, field, f"{source.label}, line {line}", header=kind in ("csv", "tsv"))
        found.append(record)
    return found


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
