"""TrecQA for `reranking.py`: questions and sentences that may answer them, a split by question."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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


def held_out(data: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Pairs to learn from, and those of ``share`` of the questions, to choose by."""
    queries = queries_of(data)
    names = list(dict.fromkeys(queries))
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[i] for i in order[: round(share * len(names))]}

    def part(inside: bool) -> Examples:
        places = [i for i, query in enumerate(queries) if (query in held) == inside]
        return Examples([data.texts[i] for i in places], [data.labels[i] for i in places])

    return part(False), part(True)


def train(
    data: Path, out: Path, policies: dict[str, object], seed: int, epochs: int, targets: list[float]
) -> None:
    """The folders of ``out`` that are not there yet: the dense model, one that has learned under
    each of ``policies``, and one for each target of learned thresholds."""
    examples, held = held_out(read(data, "train"), 0.2, seed)
    settings = Settings(seed=seed)

    def run(source: Path | str, name: str) -> Run:
        return Run(
            str(source), out / name, examples, held, False, METRIC, MAX_LENGTH, settings, print
        )

    dense = out / "dense"
    if not dense.exists():
        finetune(run(MODEL, "dense"), epochs=epochs)
    for name, policy in policies.items():
        if not (out / name).exists():
            finetune(run(dense, name), epochs=2, rate=3e-5, policy=policy)  # type: ignore[arg-type]
    for target in targets:
        name = f"ltp-{target:g}"
        if not (out / name).exists():
            train_ltp(run(dense, name), target=target)
