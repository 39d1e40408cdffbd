"""Labelled texts from files, and padded batches of them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokprune_rt.loader import describe_model
from tokprune_rt.tokenizer import TextOrPair, Tokenizer, Tokens

_KINDS = (".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class Columns:
    """Where a row keeps what: names of the header, or numbers from 0 in a file without one."""

    text: str
    label: str
    pair: str | None = None

    @property
    def names(self) -> list[str]:
        return [name for name in (self.text, self.pair, self.label) if name is not None]


@dataclass(frozen=True)
class Examples:
    """Texts or pairs and their labels as the file spells them."""

    texts: list[TextOrPair]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def read_examples(path: Path, columns: Columns) -> Examples:
    """Read a ``.tsv``, ``.csv`` or ``.jsonl`` file, also with ``.gz`` at the end.

    tsv files are read without quoting. Columns given as numbers mean that there is no header.

    Raises:
        OSError: the file cannot be read.
        ValueError: an unknown ending, a column that is not there, a row that is too short, an
            empty file; names the file and the line.
    """
    texts: list[TextOrPair] = []
    labels: list[str] = []
    for where, row in _rows(path, columns):
        found = [row.get(name) for name in columns.names]
        if any(value is None for value in found):
            missing = [n for n, value in zip(columns.names, found, strict=True) if value is None]
            raise ValueError(
                f"{where}: no column {', '.join(map(repr, missing))}; found: "
                f"{', '.join(map(repr, row)) or 'nothing'}"
            )
        values = [str(value).strip() for value in found]
        texts.append((values[0], values[1]) if columns.pair is not None else values[0])
        labels.append(values[-1])
    if not texts:
        raise ValueError(f"{path}: no rows")
    return Examples(texts, labels)


def _rows(path: Path, columns: Columns) -> Iterator[tuple[str, Mapping[str, Any]]]:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    kind = plain.suffix
    if kind not in _KINDS:
        raise ValueError(f"{path}: unknown kind of file; known: .tsv, .csv, .jsonl, each also .gz")
    with (gzip.open if path.suffix == ".gz" else open)(
        path, "rt", encoding="utf-8", errors="replace", newline="" if kind == ".csv" else None
    ) as file:
        if kind == ".jsonl":
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", _json_row(path, number, line)
            return
        if kind == ".tsv":
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            rows = csv.reader(file)
        numbered = all(name.isdigit() for name in columns.names)
        header: list[str] | None = None
        for number, row in enumerate(_checked(rows, path), 1):
            if not row:
                continue
            if numbered:
                yield f"{path}:{number}", {str(i): value for i, value in enumerate(row)}
            elif header is None:
                header = [name.strip().lstrip("\ufeff") for name in row]
            else:
                yield f"{path}:{number}", dict(zip(header, row, strict=False))


def _checked(rows: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    count = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}:{count + 1}: {error} (an unclosed quote?)") from error
        count += 1
        yield row


def _json_row(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: expected an object, found {type(row).__name__}")
    return row


def tokenizer_of(folder: Path, max_length: int | None = None) -> Tokenizer:
    """The tokenizer that the runtime uses for this model, cut to ``max_length`` tokens."""
    config, setup = describe_model(folder)
    return Tokenizer(
        setup.encoder_folder,
        config.family.model_type,
        max_positions=config.max_positions,
        max_length=max_length if max_length is not None else setup.max_seq_length,
        do_lower_case=setup.do_lower_case,
    )


@dataclass(frozen=True)
class Encoded:
    """Token ids with their targets: class numbers, int64 [n], or values, float32 [n]."""

    tokens: list[Tokens]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def collate(
    tokens: Sequence[Tokens], pad_id: int, typed: bool, device: torch.device
) -> dict[str, Tensor]:
    """Pad to the longest: input_ids, attention_mask, segment_ids, and token_type_ids if typed."""
    shape = (len(tokens), max(len(item) for item in tokens))
    arrays = {name: np.zeros(shape, np.int64) for name in ("ids", "type_ids", "segments", "mask")}
    arrays["ids"][:] = pad_id
    for row, item in enumerate(tokens):
        for name in ("ids", "type_ids", "segments"):
            arrays[name][row, : len(item)] = getattr(item, name)
        arrays["mask"][row, : len(item)] = 1
    found = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    inputs = {"input_ids": found["ids"], "attention_mask": found["mask"]}
    inputs["segment_ids"] = found["segments"]
    if typed:
        inputs["token_type_ids"] = found["type_ids"]
    return inputs


def training_batches(
    lengths: Sequence[int], batch_size: int, generator: np.random.Generator
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """One epoch of batches in random order; neighbours in length share a batch."""
    order = generator.permutation(len(lengths))
    stretch = 50 * batch_size
    batches = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        part = part[np.argsort([lengths[i] for i in part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]
