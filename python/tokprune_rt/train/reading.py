"""Labelled data from files and data sets; what is in a file says which task it is for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tokprune_rt.records import (
    SUFFIXES,
    file_lines,
    is_packed,
    json_records,
    table_records,
    table_rows,
)
from tokprune_rt.tokenizer import TextOrPair, check_text
from tokprune_rt.train.data import Data, Examples, Question, Questions, Sentences
from tokprune_rt.train.hub import dataset_rows, is_dataset

_CONLL = (".conll", ".txt")
_KINDS = (*SUFFIXES, *_CONLL, ".json")
_SQUAD = ("question", "context", "answers")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Where a row keeps what: names of the header, or numbers from 0 in a file without one."""

    text: str = "text"
    label: str = "label"
    pair: str | None = None

    @property
    def names(self) -> list[str]:
        return [name for name in (self.text, self.pair, self.label) if name is not None]


def read_examples(source: str | os.PathLike[str], columns: Columns) -> Data:
    """Read labelled data, each kind of file also with ``.gz`` at the end.

    * ``.tsv`` (without quoting), ``.csv``, ``.jsonl``, ``.ndjson``: texts or pairs with a label.
      Columns given as numbers mean that there is no header. Rows of ``.jsonl`` whose text is a list
      of words and whose label is a list of tags: sentences. Rows with question, context and answers
      (as the Hugging Face data sets have them) instead of a text: questions.
    * ``.conll``, ``.txt``: sentences, a word and its tag a line in the first and last column.
    * ``.json``: questions in SQuAD's form, 1.1 or 2.0.
    * ``hf:NAME[/CONFIG]:SPLIT``, or a folder that ``save_to_disk`` wrote: rows of a Hugging Face
      data set, read like those of ``.jsonl``.

    Raises:
        ImportError: a data set, and the package `datasets` is missing.
        OSError: the file cannot be read.
        ValueError: an unknown ending, a column that is not there, a row that is too short, words
            and tags of different number, an answer that is not at its place, an empty file; names
            the file and the line.
    """
    if is_dataset(source):
        return _from_rows(os.fspath(source), dataset_rows(source), columns)
    path = Path(source)
    kind = (path.with_suffix("") if is_packed(path) else path).suffix.lower()
    if kind not in _KINDS:
        raise ValueError(
            f"{path}: unknown kind of file; known: {', '.join(_KINDS)}, each also .gz, folders of "
            "save_to_disk and hf:NAME[/CONFIG]:SPLIT"
        )
    if kind in _CONLL:
        return _conll(path)
    if kind == ".json":
        return _squad(path)
    return _from_rows(str(path), _rows(path, SUFFIXES[kind], columns), columns)


def _from_rows(source: str, rows: Iterator[tuple[str, Row]], columns: Columns) -> Data:
    """Rows with the place of each; the first one decides what they are."""
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{source}: no rows")
    every = chain([first], rows)
    if columns.text not in first[1] and all(name in first[1] for name in _SQUAD):
        return Questions([_question(where, row) for where, row in every])
    if isinstance(first[1].get(columns.text), list | tuple):
        return _sentences(every, columns)
    texts: list[TextOrPair] = []
    labels: list[str] = []
    places: list[str] = []
    for where, row in every:
        found = _values(where, row, columns.names)
        for name, value in zip(columns.names, found, strict=True):
            if isinstance(value, list | dict):
                raise ValueError(
                    f"{where}: column {name!r} holds several values; a text has one label"
                )
        values = [str(value).strip() for value in found]
        if not values[-1]:
            raise ValueError(f"{where}: column {columns.label!r} is empty; every text has a label")
        texts.append((values[0], values[1]) if columns.pair is not None else values[0])
        labels.append(values[-1])
        places.append(where)
    return Examples(texts, labels, places)


def _values(where: str, row: Row, names: list[str]) -> list[Any]:
    for name in names:
        if name not in row:
            raise ValueError(
                f"{where}: no column {name!r}; found: {', '.join(map(repr, row)) or 'nothing'}"
            )
        if row[name] is None:
            raise ValueError(f"{where}: nothing in column {name!r}")
    return [row[name] for name in names]


def _rows(path: Path, kind: str, columns: Columns) -> Iterator[tuple[str, Row]]:
    lines, label = file_lines(path), str(path)
    rows: Iterator[tuple[int, Row]]
    if kind == "jsonl":
        rows = json_records(lines, label)
    elif all(name.isdigit() for name in columns.names):
        rows = (
            (number, {str(place): cell for place, cell in enumerate(row)})
            for number, row in table_rows(lines, label, kind)
        )
    else:
        rows = table_records(lines, label, kind)
    for number, row in rows:
        yield f"{path}:{number}", row


# Tagged sentences -----------------------------------------------------------------------------


def _conll(path: Path) -> Sentences:
    found = Sentences([], [], [])
    words: list[str] = []
    tags: list[str] = []

    def finish(first: int) -> None:
        if words:
            _add(found, words, tags, f"{path}:{first}")
            words.clear()
            tags.clear()

    begun = 1
    for number, line in enumerate(file_lines(path), 1):
        comment = not words and line.startswith("# ") and "=" in line
        if not line.strip(" \t\r\n") or line.startswith("-DOCSTART-") or comment:
            finish(begun)
            begun = number + 1
            continue
        # A word may hold a blank where tabs separate the columns.
        cells = line.strip("\r\n").split("\t") if "\t" in line else line.split()
        word, tag = cells[0].strip(), cells[-1].strip()
        if len(cells) < 2 or not word or not tag:
            raise ValueError(
                f"{path}:{number}: expected a word and its tag, found {line.strip()!r}"
            )
        words.append(word)
        tags.append(tag)
    finish(begun)
    if not found.words:
        raise ValueError(f"{path}: no sentences")
    return found


def _add(found: Sentences, words: list[str], tags: list[str], place: str) -> None:
    found.words.append([check_text(word, place) for word in words])
    found.tags.append(list(tags))
    assert isinstance(found.places, list)
    found.places.append(place)


def _sentences(rows: Iterator[tuple[str, Row]], columns: Columns) -> Sentences:
    if columns.pair is not None:
        raise ValueError(f"tagging reads no pairs; leave out the column {columns.pair!r}")
    found = Sentences([], [], [])
    for where, row in rows:
        words, tags = _values(where, row, columns.names)
        for name, value in zip(columns.names, (words, tags), strict=True):
            if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
                raise ValueError(
                    f"{where}: column {name!r}: expected a list of texts, found {value!r:.60}"
                )
        if len(words) != len(tags):
            raise ValueError(f"{where}: {len(words)} words and {len(tags)} tags")
        if words:
            _add(found, list(words), [tag.strip() for tag in tags], where)
    if not found.words:
        raise ValueError(f"{where}: no sentence up to here has a word")
    return found


# Questions ------------------------------------------------------------------------------------


def _squad(path: Path) -> Questions:
    try:
        content = json.loads("".join(file_lines(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    items = []
    for article, at in _each(content, "data", f"{path}: $"):
        for paragraph, place in _each(article, "paragraphs", at):
            context = _field(paragraph, "context", str, place)
            for entry, where in _each(paragraph, "qas", place):
                if not isinstance(entry, Mapping):
                    raise ValueError(f"{where}: expected an object, found {entry!r:.40}")
                items.append(_question(where, {**entry, "context": context}))
    if not items:
        raise ValueError(f"{path}: no questions")
    return Questions(items)


def _each(owner: Any, name: str, where: str) -> Iterator[tuple[Any, str]]:
    for index, item in enumerate(_field(owner, name, list, where)):
        yield item, f"{where}.{name}[{index}]"


def _field(owner: Any, name: str, kind: type, where: str) -> Any:
    """A member of a JSON object; ValueError unless it is there and of this kind."""
    if not isinstance(owner, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(owner).__name__}")
    if name not in owner:
        raise ValueError(f"{where}: no {name!r}; found: {', '.join(map(repr, owner)) or 'nothing'}")
    value = owner[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(
            f"{where}: {name!r}: expected {kind.__name__}, found {type(value).__name__}"
        )
    return value


def _question(where: str, row: Row) -> Question:
    """A question of SQuAD's JSON, or a row of a data set, whose answers are a mapping of lists."""
    question, context = (_field(row, name, str, where) for name in ("question", "context"))
    for name, text in (("question", question), ("context", context)):
        if not text.strip():
            raise ValueError(f"{where}: {name} is empty")
    given = row.get("answers", [])
    if isinstance(given, Mapping):
        texts, starts = (_field(given, name, list, where) for name in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise ValueError(f"{where}: {len(texts)} answers and {len(starts)} places")
        pairs = zip(texts, starts, strict=True)
        given = [{"text": text, "answer_start": start} for text, start in pairs]
    if not isinstance(given, list):
        raise ValueError(f"{where}: 'answers': expected a list, found {type(given).__name__}")
    answers = []
    for answer in [] if row.get("is_impossible") else given:
        text, start = _field(answer, "text", str, where), _field(answer, "answer_start", int, where)
        there = context[start : start + len(text)] if start >= 0 else ""
        if not text.strip() or there != text:
            raise ValueError(
                f"{where}: answer_start {start}: found {there!r} there, expected {text!r}"
            )
        answers.append((check_text(text, where), start))
    name = str(row.get("id", where))
    return Question(name, check_text(question, where), check_text(context, where), tuple(answers))
