"""What merging, dropping and pooling tokens cost embeddings, at equal numbers of multiply-adds.

    python benchmarks/embedding_quality.py --data FOLDER --json result.json
    python benchmarks/embedding_quality.py --data FOLDER --json result.json --methods none \
        --policy calibrated=policy.json --model distilled=DIR

Every method keeps one share of the tokens at each of its steps; the share is searched so that the
multiply-adds fall by the wanted factors on a sample of 20 Newsgroups (training texts outside the
index). FOLDER holds glue/STS-B, sick, vaswani, trec and 20newsgroups. Prints Markdown tables. The
JSON file is written after every row; rows that it has already are not computed again, so that a
run may be cut into pieces.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from embedding_policies import (
    METHODS,
    VARIANTS,
    Embedded,
    dense_work,
    embed,
    plan_of,
    strength_for,
)
from embedding_tasks import Task, overlap, read_tasks
from quality import MODEL
from quality_data import newsgroups

import tokprune_rt
from tokprune_rt import Model, _core
from tokprune_rt.files import atomic_file
from tokprune_rt.tokenizer import Tokens

DENSE = "dense"
LEVELS = (1.25, 1.5, 2.0)
VARIANT_LEVEL = 1.5
SAMPLE = 24
# What is pruned: both sides, or one of them with the other dense.
SIDES = ("both", "queries", "index")


@dataclass
class Row:
    """One policy.

    Attributes:
        level: factor by which the multiply-adds were to fall; None for a given policy.
        kept: share of the tokens that each step leaves.
        macs, macs_short: dense multiply-adds divided by those done: on 20 Newsgroups, on the rest.
        scores: task -> points with both sides pruned, only the queries, only the index. For pairs,
            the first text counts as the index.
        cosine: mean, 5th and 1st percentile of the cosine to the dense vector, 20 Newsgroups test.
        overlap: of the ten nearest among 101 texts, with both sides pruned, queries, index.
    """

    name: str
    level: float | None = None
    kept: float | None = None
    macs: float = 1.0
    macs_short: float = 1.0
    scores: dict[str, list[float]] = field(default_factory=dict)
    cosine: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, float | None]:
        return self.name, self.level


# What a row runs: a model, a plan, and the share that its steps leave.
Made = tuple[Model, _core.Plan | None, float | None]


@dataclass(frozen=True)
class Candidate:
    """A row to compute; ``make`` gives None where the level is out of reach."""

    name: str
    level: float | None
    make: Callable[[], Made | None]


def measure(
    row: Row,
    model: Model,
    plan: _core.Plan | None,
    tasks: Sequence[Task],
    dense: Sequence[Embedded],
) -> None:
    """Fill in a row; ``dense``: the dense result for each task."""
    short_work = short_total = 0.0
    for task, expected in zip(tasks, dense, strict=True):
        found = expected if row.name == DENSE else embed(model, task.tokens, plan)
        own, exact = found.vectors, expected.vectors
        row.scores[task.name] = [
            task.score(*pair) for pair in ((own, own), (exact, own), (own, exact))
        ]
        if task.short:
            work = dense_work(model, task.tokens)
            short_total += work
            short_work += work * found.macs
            continue
        row.macs = 1 / found.macs
        own, exact = own[task.compared], exact[task.compared]
        cosines = (own.astype(np.float64) * exact).sum(axis=1)
        row.cosine = [float(cosines.mean()), *map(float, np.percentile(cosines, (5, 1)))]
        row.overlap = [overlap(a, b, exact) for a, b in ((own, own), (exact, own), (own, exact))]
    row.macs_short = short_total / short_work


def methods(
    model: Model, sample: Sequence[Tokens], names: Sequence[str], levels: Sequence[float]
) -> Iterator[Candidate]:
    """A row for each method and level; variants share the strength of what they vary."""
    strengths: dict[tuple[str, float], float | None] = {}

    def make(name: str, level: float) -> Made | None:
        base = VARIANTS.get(name, name), level
        if base not in strengths:
            strengths[base] = strength_for(model, sample, METHODS[base[0]], level)
        kept = strengths[base]
        return None if kept is None else (model, plan_of(model, METHODS[name](kept)), kept)

    for level in levels:
        for name in names:
            if name not in VARIANTS or level == VARIANT_LEVEL:
                yield Candidate(name, level, partial(make, name, level))


def given(
    policies: Sequence[str], folders: Sequence[str], options: dict[str, Any]
) -> Iterator[Candidate]:
    """Rows for NAME=POLICY and NAME=FOLDER, one for each profile."""
    for item in policies:
        name, _, source = item.partition("=")
        yield from _profiles(name, tokprune_rt.load(MODEL, policy=source, **options))
    for item in folders:
        name, _, folder = item.partition("=")
        yield from _profiles(name, tokprune_rt.load(folder, **options), own=True)


def _profiles(name: str, model: Model, *, own: bool = False) -> Iterator[Candidate]:
    """``own``: other weights, so that "off" is a row, too."""
    profiles = [None, *(p for p in model.profiles if own or p != "off")]
    for profile in profiles:
        title = name if profile is None else f"{name} [{profile}]"
        made: Made = (model, model.engine.plan(profile), None)
        yield Candidate(title, None, partial(_same, made))


def _same(made: Made) -> Made:
    return made


def sample_of(folder: Path, model: Model, index: int) -> list[Tokens]:
    """Training texts after those of the index, spread over the lengths."""
    texts = newsgroups(folder, "train", index + 4 * SAMPLE, bodies=True).texts[index:]
    return sorted(model.tokenizer.tokenize(texts), key=len)[2::4]


def markdown(rows: Sequence[Row]) -> str:
    """The main table, and one with scores where only one side is pruned."""
    rows = sorted(rows, key=_place)
    names = list(rows[0].scores)
    titles = ["", "kept per step", "MACs, news", "MACs, short", *names]
    titles += ["cosine mean", "p5", "p1", "top-10 both", "queries", "index"]
    lines = _head(titles)
    for row in rows:
        cells = [_title(row), "" if row.kept is None else f"{row.kept:.3f}"]
        cells += [f"{row.macs:.2f}x", f"{row.macs_short:.2f}x"]
        cells += [f"{row.scores[name][0]:.1f}" for name in names]
        cells += [f"{value:.3f}" for value in [*row.cosine, *row.overlap]]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *_head(["", *(f"{n}, {side}" for n in names for side in SIDES[1:])])]
    for row in rows:
        cells = [f"{row.scores[name][side]:.1f}" for name in names for side in (1, 2)]
        lines.append("| " + " | ".join([_title(row), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _place(row: Row) -> tuple[float, int]:
    """The dense row, the methods by level, then what was given."""
    if row.level is None:
        return (0.0 if row.name == DENSE else np.inf), 0
    return row.level, [*METHODS, row.name].index(row.name)


def _title(row: Row) -> str:
    return row.name if row.level is None else f"{row.name}, {row.level:g}x"


def _head(titles: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]


class Report:
    """The rows so far, in a file that further runs go on from."""

    def __init__(self, path: Path | None, setting: dict[str, Any]) -> None:
        self._path, self._setting = path, setting
        self.rows: list[Row] = []
        if path is not None and path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["setting"] != setting:
                raise SystemExit(
                    f"{path} was made with {document['setting']}, expected {setting}: "
                    "name another file"
                )
            self.rows = [Row(**row) for row in document["rows"]]

    def has(self, key: tuple[str, float | None]) -> bool:
        return any(row.key == key for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if self._path is not None:
            document = {
                "format": "tokprune-embedding-quality",
                "setting": self._setting,
                "rows": [asdict(item) for item in self.rows],
            }
            with atomic_file(self._path) as file:
                file.write(json.dumps(document, indent=2).encode() + b"\n")


def fill(
    report: Report, tasks: list[Task], model: Model, todo: Iterator[Candidate], end: float
) -> None:
    """Compute what the report lacks, until the time is over."""
    dense: list[Embedded] | None = None
    for candidate in todo:
        if report.has((candidate.name, candidate.level)):
            continue
        if time.monotonic() > end:
            print("out of time; the same command goes on")
            return
        dense = dense or [embed(model, task.tokens, None) for task in tasks]
        made = candidate.make()
        row = Row(candidate.name, candidate.level)
        if made is None:
            print(f"{_title(row)}: out of reach", flush=True)
            continue
        own, plan, row.kept = made
        measure(row, own, plan, tasks, dense)
        report.add(row)
        shown = ", ".join(f"{value:.3f}" for value in row.cosine)
        print(f"{_title(row)}: {row.macs:.2f}x, cosine {shown}", flush=True)


def chosen_methods(text: str) -> list[str]:
    """The methods named in a list, ``all`` or ``none``; variants stand after what they vary."""
    if text in ("all", "none"):
        return list(METHODS) if text == "all" else []
    names = [name.strip() for name in text.split(";")]
    for name in names:
        if name not in METHODS:
            raise SystemExit(f"unknown method {name!r}; there are: {'; '.join(METHODS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--methods", default="all", metavar="'A; B'", help="all, none, or names")
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)), metavar="X,Y")
    parser.add_argument("--policy", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--index", type=int, default=400, help="texts of 20 Newsgroups, train")
    parser.add_argument("--queries", type=int, default=303, help="texts of 20 Newsgroups, test")
    parser.add_argument("--whole", action="store_true", help="all of SICK, vaswani and TREC")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no row after so long")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    common = {"precision": options.precision, "threads": options.threads}
    model = tokprune_rt.load(MODEL, policy="off", **common)
    tasks = read_tasks(
        options.data, model.tokenizer, options.index, options.queries, whole=options.whole
    )
    setting = {
        name: getattr(options, name) for name in ("index", "queries", "whole", "precision")
    } | {"model": MODEL}
    report = Report(options.json, setting)
    sample = sample_of(options.data, model, options.index)
    levels = [float(level) for level in options.levels.split(",")]

    def todo() -> Iterator[Candidate]:
        yield Candidate(DENSE, None, partial(_same, (model, None, None)))
        yield from methods(model, sample, chosen_methods(options.methods), levels)
        yield from given(options.policy, options.model, common)

    fill(report, tasks, model, todo(), end)
    if report.rows:
        print(markdown(report.rows))


if __name__ == "__main__":
    main()
