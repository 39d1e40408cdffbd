"""TrecQA for `reranking.py`: questions and sentences that may answer them, a split by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tokprune_rt.policy import PolicySource
from tokprune_rt.train import Columns, Examples, Run, Settings, finetune, read_examples, train_ltp

MODEL = "all-MiniLM-L6-v2"
METRIC, MAX_LENGTH = "map", 128
COLUMNS = Columns("qtext", "label", "atext")


def read(folder: Path, split: str) -> Examples:
    """``train`` or ``dev``; the folder's dev file is what is reported, nothing is chosen on it."""
    found = read_examples(folder / "trecqa" / f"{split}.csv", COLUMNS)
    assert isinstance(found, Examples)
    return found


def queries_of(data: Examples) -> list[str]:
    """The question of every pair."""
    return [text[0] for text in data.texts]


def held_out(data: Examples, seed: int) -> tuple[Examples, Examples]:
    """Pairs to learn from, and those of a fifth of the questions, to choose by."""
    queries = queries_of(data)
    names = list(dict.fromkeys(queries))
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[i] for i in order[: -(-len(names) // 5)]}

    def part(inside: bool) -> Examples:
        places = [i for i, query in enumerate(queries) if (query in held) == inside]
        return Examples([data.texts[i] for i in places], [data.labels[i] for i in places])

    return part(False), part(True)


def train(
    data: Path,
    out: Path,
    policies: Mapping[str, PolicySource] | None = None,
    shares: Sequence[float] = (),
    *,
    seed: int,
    epochs: int,
) -> None:
    """The folders of ``out`` that are not there yet: the dense model, and made from it one that has
    learned under each of ``policies``, and one with learned thresholds for each of ``shares`` of
    the work."""
    examples, held = held_out(read(data, "train"), seed)
    say = partial(print, flush=True)

    def run(source: Path | str, name: str) -> Run:
        settings = Settings(batch_size=16, seed=seed)
        return Run(
            str(source), out / name, examples, held, False, METRIC, MAX_LENGTH, settings, say
        )

    if not (out / "dense").exists():
        finetune(run(MODEL, "dense"), epochs=epochs, rate=1e-4)
    for name, policy in (policies or {}).items():
        if not (out / name).exists():
            finetune(run(out / "dense", name), epochs=2, rate=3e-5, policy=policy)
    for share in shares:
        name = f"ltp-{share:g}"
        if not (out / name).exists():
            train_ltp(run(out / "dense", name), target=share)
