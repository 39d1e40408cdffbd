"""The tasks of `embedding_quality.py`: texts once, and scores from their vectors.

A score takes two matrices of the same texts' vectors: one for what is stored in an index, one for
what asks. Both are pruned alike, or one of them is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quality import Vectors, correlation, ndcg
from quality_data import (
    Labelled,
    Pairs,
    Retrieval,
    newsgroups,
    sick,
    sts_b,
    trec_questions,
    vaswani,
)

from tokprune_rt.tokenizer import Tokenizer, Tokens

NEIGHBOURS = 5
GROUP, TOP = 101, 10
# Of vaswani's documents, TREC's training questions and SICK's pairs, unless everything is wanted.
_UNJUDGED, _QUESTIONS, _PAIRS = 300, 1000, 2000


@dataclass(frozen=True)
class Task:
    """Texts, and the score in points of their vectors (of an index, of queries).

    Attributes:
        compared: which texts' vectors are compared with the dense ones.
    """

    name: str
    tokens: list[Tokens]
    score: Callable[[Vectors, Vectors], float]
    short: bool = True
    compared: slice | None = None


def nearest(index: Labelled, queries: Labelled, k: int = NEIGHBOURS) -> Callable[..., float]:
    """Share of the queries, in points, whose class the k nearest texts vote for.

    Their votes count by cosine. The texts are those of the index, then the queries.
    """
    names = np.unique(np.concatenate([index.labels, queries.labels]))
    stored = np.searchsorted(names, index.labels)
    wanted = np.searchsorted(names, queries.labels)
    size = len(stored)

    def score(a: Vectors, b: Vectors) -> float:
        cosines = b[size:] @ a[:size].T
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(wanted), len(names)))
        rows = np.arange(len(wanted))[:, None]
        np.add.at(votes, (rows, stored[best]), np.take_along_axis(cosines, best, axis=1))
        return 100 * float((votes.argmax(axis=1) == wanted).mean())

    return score


def overlap(index: Vectors, queries: Vectors, reference: Vectors) -> float:
    """Mean share of a text's ten nearest, among 101 texts with itself, that stay the nearest."""
    shares = []
    for start in range(0, len(reference) - GROUP + 1, GROUP):
        part = slice(start, start + GROUP)
        expected, found = (
            _neighbours(*pair)
            for pair in ((reference[part], reference[part]), (index[part], queries[part]))
        )
        shares.append((expected[:, :, None] == found[:, None, :]).sum() / (TOP * GROUP))
    return float(np.mean(shares))


def _neighbours(index: Vectors, queries: Vectors) -> NDArray[np.intp]:
    cosines = queries @ index.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :TOP]


def _similarity(name: str, data: Pairs, tokenizer: Tokenizer) -> Task:
    texts, places = np.unique(np.array([*data.first, *data.second], object), return_inverse=True)
    first, second = np.split(places, 2)

    def score(a: Vectors, b: Vectors) -> float:
        return correlation(a[first], b[second], data.scores)

    return Task(name, tokenizer.tokenize(texts.tolist()), score)


def _retrieval(data: Retrieval, tokenizer: Tokenizer) -> Task:
    count = len(data.documents)
    texts = [*data.documents.values(), *data.queries.values()]

    def score(a: Vectors, b: Vectors) -> float:
        return ndcg(a[:count], b[count:], data)

    return Task("vaswani", tokenizer.tokenize(texts), score)


def _classes(
    name: str, index: Labelled, queries: Labelled, tokenizer: Tokenizer, *, short: bool
) -> Task:
    tokens = tokenizer.tokenize([*index.texts, *queries.texts])
    size = len(index.texts)
    return Task(name, tokens, nearest(index, queries), short, slice(size, None))


def _some_documents(data: Retrieval) -> Retrieval:
    """The documents with a judgement, and some without."""
    judged = {name for grades in data.relevance.values() for name in grades}
    rest = [name for name in data.documents if name not in judged]
    picked = np.random.default_rng(0).permutation(len(rest))[:_UNJUDGED]
    wanted = judged | {rest[i] for i in picked}
    documents = {name: text for name, text in data.documents.items() if name in wanted}
    return Retrieval(documents, data.queries, data.relevance)


def read_tasks(
    folder: Path, tokenizer: Tokenizer, index: int, queries: int, *, whole: bool
) -> list[Task]:
    """All tasks.

    Args:
        index, queries: texts of 20 Newsgroups, of the training and of the test part.
        whole: all of SICK, vaswani and TREC's questions instead of a part.
    """
    pairs, retrieval = sick(folder), vaswani(folder)
    questions = trec_questions(folder, "train")
    if not whole:
        pairs = Pairs(pairs.first[:_PAIRS], pairs.second[:_PAIRS], pairs.scores[:_PAIRS])
        retrieval = _some_documents(retrieval)
        picked = np.random.default_rng(0).permutation(len(questions.texts))[:_QUESTIONS]
        questions = Labelled([questions.texts[i] for i in picked], questions.labels[picked])
    stored, asked = (
        newsgroups(folder, split, count, bodies=True)
        for split, count in (("train", index), ("test", queries))
    )
    return [
        _similarity("STS-B", sts_b(folder), tokenizer),
        _similarity("SICK", pairs, tokenizer),
        _retrieval(retrieval, tokenizer),
        _classes("TREC", questions, trec_questions(folder, "test"), tokenizer, short=True),
        _classes("20 News", stored, asked, tokenizer, short=False),
    ]
