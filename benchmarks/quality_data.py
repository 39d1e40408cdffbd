"""Labelled data for the quality scripts, read from a folder that the caller names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TAG = re.compile(r"</?\w+>")


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences with the similarity that people gave them, float64 [n]."""

    first: list[str]
    second: list[str]
    scores: Floats


@dataclass(frozen=True)
class Labelled:
    """Texts with their class, a number or a name for each [n]."""

    texts: list[str]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Retrieval:
    """Documents, queries, and for each query the relevance of document numbers."""

    documents: dict[str, str]
    queries: dict[str, str]
    relevance: dict[str, dict[str, int]]


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _pairs(rows: list[list[str]], first: int, second: int, score: int) -> Pairs:
    return Pairs(
        [row[first] for row in rows],
        [row[second] for row in rows],
        np.array([float(row[score]) for row in rows]),
    )


def sts_b(folder: Path, split: str = "dev") -> Pairs:
    """STS-B of GLUE: ten columns, the sentences before the score, which is the last."""
    rows = list(_rows(folder / "glue" / "STS-B" / f"{split}.tsv"))
    return _pairs(rows[1:] if rows[0][0] == "index" else rows, -3, -2, -1)


def sick(folder: Path) -> Pairs:
    """The test split of SICK, scored by relatedness."""
    rows = list(_rows(folder / "sick" / "SICK_test_annotated.txt"))
    header = rows[0]
    places = (header.index(name) for name in ("sentence_A", "sentence_B", "relatedness_score"))
    return _pairs([row for row in rows[1:] if row], *places)


def sst2(folder: Path, split: str) -> Labelled:
    """``train`` or ``dev`` of SST-2."""
    rows = list(_rows(folder / "glue" / "SST-2" / f"{split}.tsv"))[1:]
    return Labelled([row[0].strip() for row in rows], np.array([int(row[1]) for row in rows]))


def newsgroups(folder: Path, split: str, count: int, *, bodies: bool = False) -> Labelled:
    """``count`` texts of 20 Newsgroups ("bydate"), drawn at random from ``train`` or ``test``.

    ``bodies``: without the headers, which end at the first empty line; without empty texts.
    """
    (path,) = (folder / "20newsgroups").glob(f"*{split}*.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if bodies:
        rows = [{**row, "text": row["text"].partition("\n\n")[2].strip()} for row in rows]
        rows = [row for row in rows if row["text"]]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
    return Labelled([row["text"] for row in rows], np.array([row["label"] for row in rows]))


def trec_questions(folder: Path, split: str) -> Labelled:
    """TREC's questions of ``train`` or ``test`` with their coarse types."""
    with zipfile.ZipFile(folder / "trec" / "qc.zip") as archive:
        lines = io.TextIOWrapper(archive.open(f"qc/{split}.txt"), encoding="latin-1")
        pairs = [line.strip().split(" ", 1) for line in lines if line.strip()]
    return Labelled(
        [text for _, text in pairs], np.array([kind.split(":")[0] for kind, _ in pairs])
    )


def _trec(path: Path, item: str, number: str) -> dict[str, str]:
    """TREC's tagged text: ``item`` elements, each with a ``number``, which is left out of them."""
    found = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    for part in re.findall(rf"<{item}>(.*?)</{item}>", text, re.S | re.I):
        key = re.search(rf"<{number}>(.*?)</{number}>", part, re.S | re.I)
        if key is not None:
            found[key[1].strip()] = " ".join(_TAG.sub(" ", part.replace(key[0], "")).split())
    return found


def vaswani(folder: Path) -> Retrieval:
    """11,429 abstracts on physics, 93 queries, 2,083 judgements."""
    relevance: dict[str, dict[str, int]] = {}
    for line in (folder / "vaswani" / "qrels").read_text(encoding="utf-8").splitlines():
        if line.strip():
            query, _, document, grade = line.split()
            relevance.setdefault(query, {})[document] = int(grade)
    return Retrieval(
        _trec(folder / "vaswani" / "doc-text.trec", "DOC", "DOCNO"),
        _trec(folder / "vaswani" / "query-text.trec", "TOP", "NUM"),
        relevance,
    )
