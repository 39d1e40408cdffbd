"""Vectors as bytes that can be appended to, and the files made of them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tokprune_rt.jobs.reading import Chunk, Source, arrow, to_array
from tokprune_rt.outputs import FloatArray

ROW, VECTOR = "row", "vector"


class Form(Protocol):
    """What the data of a job looks like."""

    def head(self) -> bytes:
        """What the data begins with."""
        ...

    def body(self, first: int, chunk: Chunk, vectors: FloatArray) -> Any:
        """A chunk of rows, the first of them row number ``first``, as bytes."""
        ...

    def finish(self, data: Path, facts: Mapping[str, Any]) -> Path:
        """The file to publish, made of the whole data."""
        ...


class Npy:
    """A float32 array [rows, dimension], which is its own final form."""

    def __init__(self, rows: int, dimension: int) -> None:
        self._shape = (rows, dimension)

    def head(self) -> bytes:
        found = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(found, header)
        return found.getvalue()

    def body(self, first: int, chunk: Chunk, vectors: FloatArray) -> Any:
        return np.ascontiguousarray(vectors, dtype="<f4").data

    def finish(self, data: Path, facts: Mapping[str, Any]) -> Path:
        return data


class Parquet:
    """A table with the columns row (int64), the kept ones, and vector (a list of float32 each).

    Until the end it is an Arrow stream, to which a process can add what another has begun; a
    Parquet file is only readable with its last bytes.
    """

    def __init__(self, source: Source, types: list[Any], dimension: int) -> None:
        pa, _ = arrow()
        self._source = source
        self._dimension = dimension
        self._schema = pa.schema(
            [
                pa.field(ROW, pa.int64(), nullable=False),
                *map(pa.field, source.keep, types),
                pa.field(VECTOR, pa.list_(pa.float32(), dimension)),
            ]
        )

    def head(self) -> bytes:
        return bytes(self._schema.serialize())

    def body(self, first: int, chunk: Chunk, vectors: FloatArray) -> Any:
        pa, _ = arrow()
        rows = np.arange(first, first + len(vectors), dtype=np.int64)
        kept = [
            to_array(values, self._schema.field(name).type)
            for name, values in zip(self._source.keep, chunk.kept, strict=True)
        ]
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, self._dimension)
        batch = pa.record_batch([pa.array(rows), *kept, lists], schema=self._schema)
        return batch.serialize()

    def finish(self, data: Path, facts: Mapping[str, Any]) -> Path:
        """A chunk a row group; the facts are in the metadata under ``tokprune_rt``."""
        pa, parquet = arrow()
        result = data.with_name("result")
        schema = self._schema.with_metadata({"tokprune_rt": json.dumps(dict(facts))})
        dictionaries = [
            name for name in self._source.keep if pa.types.is_string(schema.field(name).type)
        ]
        with (
            pa.OSFile(str(data)) as file,
            pa.ipc.open_stream(file) as stream,
            open(result, "wb") as target,
        ):
            # Vectors of an encoder hardly repeat a number, so a dictionary of them saves nothing.
            with parquet.ParquetWriter(target, schema, use_dictionary=dictionaries) as writer:
                for batch in stream:
                    writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            target.flush()
            os.fsync(target.fileno())
        return result


def make_form(output: Path, source: Source, rows: int, types: list[Any], dimension: int) -> Form:
    """The form that the output's name asks for; see `check_output`."""
    if output.suffix == ".npy":
        return Npy(rows, dimension)
    return Parquet(source, types, dimension)


def check_output(output: Path, keep: tuple[str, ...]) -> None:
    """ValueError for an ending that is not supported, or columns that the output cannot keep."""
    if output.suffix not in (".npy", ".parquet"):
        raise ValueError(f"{output}: the name must end in .npy or .parquet")
    if output.suffix == ".npy":
        if keep:
            raise ValueError(f"{output} has no columns to keep {keep[0]!r} in; write a .parquet")
        return
    arrow()
    for index, name in enumerate(keep):
        if name in (ROW, VECTOR):
            raise ValueError(f"{name!r} cannot be kept: {output} has a column of that name")
        if name in keep[:index]:
            raise ValueError(f"{name!r} is kept twice")
