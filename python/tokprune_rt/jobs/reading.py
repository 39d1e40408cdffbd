"""Rows of files, read one after the other."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokprune_rt.integrations.extras import require
from tokprune_rt.records import (
    SUFFIXES,
    Record,
    file_lines,
    is_packed,
    json_records,
    table_records,
    text_of,
)

FORMATS = {**SUFFIXES, ".txt": "text", ".parquet": "parquet"}

# Rows are counted in chunks, but a chunk of very long ones ends earlier: this bounds the memory.
_CHARACTERS = 1 << 22
_BLOCK = 1 << 20


class Row(NamedTuple):
    """One text; ``number`` is its line, or its row in a Parquet file. ``kept`` as in `Source`."""

    number: int
    text: str
    kept: tuple[Any, ...]


class Chunk(NamedTuple):
    """Neighbouring rows; ``kept`` is a list of values for every kept column."""

    first: int
    last: int
    texts: list[str]
    kept: list[list[Any]]


@dataclass(frozen=True)
class Source:
    """A file of texts.

    Attributes:
        path: ``.txt`` (a text a line), ``.jsonl``, ``.ndjson``, ``.csv`` or ``.tsv`` (with a
            header), all of them also with ``.gz`` at the end, or ``.parquet``.
        column: where the text is, in every format but ``.txt``.
        keep: columns whose values are read along.
    """

    path: Path
    column: str
    keep: tuple[str, ...]

    def __post_init__(self) -> None:
        self.path.stat()  # raises FileNotFoundError
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not a file; a job reads its input more than once")
        if self.format == "parquet":
            arrow()
        if self.format == "text" and self.keep:
            raise ValueError(f"{self.path} has no columns, so {self.keep[0]!r} cannot be kept")

    @cached_property
    def format(self) -> str:
        """What the file's name says: text, jsonl, csv, tsv or parquet; else ValueError."""
        packed = is_packed(self.path)
        ending = (self.path.with_suffix("") if packed else self.path).suffix.lower()
        found = FORMATS.get(ending)
        if found is None or (packed and found == "parquet"):
            known = ", ".join(FORMATS)
            raise ValueError(
                f"{self.path}: the name must end in one of {known}, all but the last also with .gz"
            )
        return found

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change."""
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def place(self, number: int) -> str:
        """What messages call a row."""
        return f"{self.path}, {'row' if self.format == 'parquet' else 'line'} {number}"

    def sha256(self) -> str:
        """A digest of the file's bytes."""
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def rows(self) -> Iterator[Row]:
        """Every row, with no more of the file in memory than a few of them.

        Raises ValueError naming the line for what is not of the file's format, not UTF-8, or has
        no text. A kept column that a record lacks is None there.
        """
        if self.format == "text":
            for number, line in enumerate(file_lines(self.path), 1):
                yield Row(number, line.removesuffix("\n").removesuffix("\r"), ())
            return
        if self.format == "parquet":
            yield from self._parquet_rows()
            return
        for number, record in self._records():
            header = self.format in ("csv", "tsv")
            text = text_of(record, self.column, self.place(number), header=header)
            yield Row(number, text, tuple(record.get(name) for name in self.keep))

    def _records(self) -> Iterator[tuple[int, Record]]:
        label = str(self.path)
        if self.format == "jsonl":
            return json_records(file_lines(self.path), label)
        return table_records(file_lines(self.path), label, self.format)

    def _parquet_rows(self) -> Iterator[Row]:
        pa, parquet = arrow()
        try:
            # By default pyarrow reads all that it will need into memory before it begins.
            options = {"pre_buffer": False, "buffer_size": _BLOCK}
            with parquet.ParquetFile(self.path, **options) as file:
                have = file.schema_arrow.names
                for name in (self.column, *self.keep):
                    if have.count(name) != 1:
                        known = ", ".join(map(repr, have)) or "none"
                        many = "more than one" if name in have else "no"
                        raise ValueError(f"{self.path}: {many} column {name!r}; it has {known}")
                number = 0
                names = list(dict.fromkeys((self.column, *self.keep)))
                for batch in file.iter_batches(batch_size=1024, columns=names):
                    kept = [_plain(pa, batch.column(name)) for name in self.keep]
                    for index, text in enumerate(batch.column(self.column).to_pylist()):
                        checked = text_of({self.column: text}, self.column, self.place(number))
                        # As arrays of one value, which keep their exact type.
                        yield Row(number, checked, tuple(part.slice(index, 1) for part in kept))
                        number += 1
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"{self.path} is not a readable Parquet file: {error}") from error


def arrow() -> Any:
    """pyarrow and pyarrow.parquet; ImportError naming the extra when they are not installed."""
    return require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")


def to_array(values: list[Any], kind: Any = None) -> Any:
    """An Arrow array of a chunk's kept values, of the type ``kind`` or of one that fits."""
    pa, _ = arrow()
    if isinstance(values[0], pa.Array):
        return pa.concat_arrays(values)
    return pa.array(values, type=kind)


def _plain(pa: Any, values: Any) -> Any:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def chunks(rows: Iterable[Row], size: int, columns: int) -> Iterator[Chunk]:
    """Rows in chunks of ``size``, or of fewer when they hold some millions of characters.

    Reads no row before the one that begins the next chunk has been asked for.
    """
    part: list[Row] = []
    characters = 0
    for row in rows:
        part.append(row)
        characters += len(row.text)
        characters += sum(len(value) for value in row.kept if isinstance(value, str))
        if len(part) == size or characters >= _CHARACTERS:
            yield _chunk(part, columns)
            part, characters = [], 0
    if part:
        yield _chunk(part, columns)


def _chunk(part: Sequence[Row], columns: int) -> Chunk:
    kept = [[row.kept[i] for row in part] for i in range(columns)]
    return Chunk(part[0].number, part[-1].number, [row.text for row in part], kept)


class Scan(NamedTuple):
    """What there is to do: the number of rows, and the Arrow types of the kept columns."""

    rows: int
    types: list[Any]


def scan(source: Source, size: int) -> Scan:
    """Read a file once, so that what is wrong with it shows before the work begins.

    Raises ValueError as `Source.rows`; also for a file without rows, and for a kept column without
    values or with values of types that do not go together.
    """
    total = 0
    types: list[Any] = [None] * len(source.keep)
    for chunk in chunks(source.rows(), size, len(source.keep)):
        total += len(chunk.texts)
        for index, values in enumerate(chunk.kept):
            types[index] = _common_type(source, index, types[index], values, chunk)
    if total == 0:
        raise ValueError(f"{source.path} holds no texts")
    for name, kind in zip(source.keep, types, strict=True):
        if str(kind) == "null":
            raise ValueError(f"{source.path}: no row has a value in the column {name!r}")
    return Scan(total, types)


def _common_type(source: Source, index: int, before: Any, values: list[Any], chunk: Chunk) -> Any:
    pa, _ = arrow()
    try:
        found = to_array(values).type
        if before is None or before == found:
            return found
        schemas = [pa.schema([("x", kind)]) for kind in (before, found)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
        raise ValueError(
            f"{source.place(chunk.first)} to {chunk.last}: the column {source.keep[index]!r} has "
            f"values that make no column: {error}"
        ) from error


class Snapshot:
    """A source as it is now; ``sha256`` is the digest of its bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stamp = source.stamp
        self.sha256 = source.sha256()

    def chunks(self, first: int, size: int) -> Iterator[Chunk]:
        """The chunks from row number ``first`` on.

        Raises ValueError when the file has got another content.
        """
        rows = itertools.islice(self._source.rows(), first, None)
        for chunk in chunks(rows, size, len(self._source.keep)):
            self._check()
            yield chunk
        self._check()

    def _check(self) -> None:
        stamp = self._source.stamp
        if stamp == self._stamp:
            return
        if self._source.sha256() != self.sha256:
            raise ValueError(
                f"{self._source.path} changed while it was read; what is finished belongs to its "
                "old content"
            )
        self._stamp = stamp
