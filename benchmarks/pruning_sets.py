"""The public sets of `pruning_table.py`, read from a folder that the caller names."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from quality_data import trec_questions

from tokprune_rt.tokenizer import TextOrPair
from tokprune_rt.train import Columns, Data, Examples, Questions, Sentences, read_examples

Reader = Callable[[Path], Data]


def file(path: str, text: str, pair: str | None = None, label: str = "label") -> Reader:
    return lambda folder: read_examples(folder / path, Columns(text, label, pair))


def sick(name: str) -> Reader:
    def read(folder: Path) -> Examples:
        columns = Columns("sentence_A", "relatedness_score", "sentence_B")
        lines = (folder / "sick" / name).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines if line]
        places = [rows[0].index(column) for column in columns.names]
        texts: list[TextOrPair] = [(row[places[0]], row[places[1]]) for row in rows[1:]]
        return Examples(texts, [row[places[2]] for row in rows[1:]])

    return read


def trec(name: str) -> Reader:
    def read(folder: Path) -> Examples:
        found = trec_questions(folder, name)
        return Examples([*found.texts], found.labels.tolist())

    return read


def wnut(name: str) -> Reader:
    def read(folder: Path) -> Data:
        with tempfile.TemporaryDirectory() as work:
            path = shutil.copyfile(folder / "wnut17" / name, Path(work) / "wnut.conll")
            return read_examples(path, Columns("tokens", "tags"))

    return read


def squad(name: str, but: str | None = None) -> Reader:
    """Questions of a file, without those on a context that the file ``but`` has too."""

    def read(folder: Path) -> Questions:
        found, other = (
            read_examples(folder / "squad" / each, Columns("context", "answers")) if each else None
            for each in (name, but)
        )
        assert isinstance(found, Questions)
        if other is None:
            return found
        assert isinstance(other, Questions)
        seen = {item.context for item in other.items}
        return Questions([item for item in found.items if item.context not in seen])

    return read


@dataclass(frozen=True)
class Set:
    """A task: its data, how it is scored, and the length that the literature pads it to.

    ``learned_at``: tokens to which texts are cut while anything learns, which is cheaper; ranks and
    mean scores are relative. ``rate``: of the dense model's fine-tuning. ``copies``: see
    `Schedule`; None: as many as the method's. ``most``: examples to learn from, ``reported``: to
    report on, drawn at random; 0: all. ``longest``: learn to prune from so many examples, those of
    the most words, a tenth of them to choose by; 0: from all that the dense model learned from.
    ``all_to_prune``: methods that learn instead from all examples but those to choose by, which
    needs no labels of them: no altered copies, one pass before decisions are final.
    """

    train: Reader
    test: Reader
    padded_to: int
    metric: str | None = None
    regression: bool = False
    max_length: int | None = None
    learned_at: int | None = None
    rate: float = 5e-5
    copies: int | None = None
    most: int = 0
    longest: int = 0
    all_to_prune: tuple[str, ...] = ()
    reported: int = 0


_MRPC = {"text": "#1 String", "pair": "#2 String", "label": "Quality"}
_PAIR = {"text": "sentence1", "pair": "sentence2"}


def _glue(
    name: str, split: str, text: str, pair: str | None = None, label: str = "label"
) -> Reader:
    return file(f"glue/{name}/{split}.tsv", text, pair, label)


SETS = {
    "mrpc": Set(_glue("MRPC", "train", **_MRPC), _glue("MRPC", "dev", **_MRPC), 128, "f1"),
    "rte": Set(_glue("RTE", "train", **_PAIR), _glue("RTE", "dev", **_PAIR), 256),
    "cola": Set(
        _glue("CoLA", "train", "3", label="1"),
        _glue("CoLA", "dev", "3", label="1"),
        64,
        "matthews",
    ),
    "sts-b": Set(
        _glue("STS-B", "train", **_PAIR, label="score"),
        _glue("STS-B", "dev", **_PAIR, label="score"),
        64,
        regression=True,
    ),
    "sst-2": Set(
        _glue("SST-2", "train", "sentence"),
        _glue("SST-2", "dev", "sentence"),
        64,
        longest=16_000,
    ),
    "sick": Set(sick("SICK_train.txt"), sick("SICK_test_annotated.txt"), 64, regression=True),
    "trec": Set(trec("train"), trec("test"), 64),
    "20news": Set(
        file("20newsgroups/train.jsonl.gz", "text"),
        file("20newsgroups/test.jsonl.gz", "text"),
        512,
        max_length=512,
        learned_at=256,
        rate=1e-4,
        copies=1,
        all_to_prune=("gate",),
        most=3_000,
        reported=1_000,
    ),
    "wnut17": Set(wnut("wnut17train.conll"), wnut("emerging.test.annotated"), 64),
    "squad": Set(
        squad("dev-v2.0.json"),
        squad("xquad.en.json", but="dev-v2.0.json"),
        384,
        max_length=384,
        most=3_000,
    ),
}


def part(data: Data, places: Sequence[int]) -> Data:
    """The examples at these places."""
    if isinstance(data, Examples):
        return Examples([data.texts[i] for i in places], [data.labels[i] for i in places])
    if isinstance(data, Sentences):
        return Sentences([data.words[i] for i in places], [data.tags[i] for i in places])
    return Questions([data.items[i] for i in places])


def reported(chosen: Set, folder: Path) -> Data:
    """What a set's scores are of; the same examples for every seed."""
    data = chosen.test(folder)
    if not chosen.reported:
        return data
    order = np.random.default_rng(0).permutation(len(data)).tolist()
    return part(data, order[: chosen.reported])


def split(data: Data, most: int, seed: int, held: int | None = None) -> tuple[Data, Data]:
    """Training examples, at ``most`` so many with those that are held out to choose by: a tenth, or
    ``held``. The same seed begins with the same examples, whatever the numbers."""
    order = np.random.default_rng(seed).permutation(len(data)).tolist()
    if most:
        order = order[:most]
    held = len(order) // 10 if held is None else held
    return part(data, order[held:]), part(data, order[:held])


def longest(data: Data, count: int) -> Data:
    """The examples with the most words: of SST-2, sentences and long phrases, as it tests on."""
    assert isinstance(data, Examples)
    words = np.array([len(str(text).split()) for text in data.texts])
    return part(data, np.sort(np.argsort(-words, kind="stable")[:count]).tolist())
