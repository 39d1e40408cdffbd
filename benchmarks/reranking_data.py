"""What `reranking.py` learns and reports: TrecQA, questions and sentences that may answer them.

93 questions teach a cross-encoder little: with their labels alone it stays behind the cosine of
the two texts' embeddings by the model that it begins with. So it learns from SQuAD's questions and
the sentences of their contexts first, and what it learns is the mean of a label and of that cosine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tokprune_rt.loading import load
from tokprune_rt.policy import PolicySource
from tokprune_rt.tokenizer import TextOrPair
from tokprune_rt.train import (
    Columns,
    Examples,
    Questions,
    Run,
    Settings,
    finetune,
    read_examples,
    train_ltp,
)

MODEL = "all-MiniLM-L6-v2"
METRIC, MAX_LENGTH = "map", 128
COLUMNS = Columns("qtext", "label", "atext")
_SQUAD, _SENTENCE_END = 1600, re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])")


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


def of_squad(folder: Path, seed: int) -> Examples:
    """Questions of SQuAD with the sentence of the answer and up to three others of its context."""
    found = read_examples(folder / "squad" / "dev-v2.0.json", Columns("context", "answers"))
    assert isinstance(found, Questions)
    rng = np.random.default_rng(seed)
    answered = [item for item in found.items if item.answers]
    texts: list[TextOrPair] = []
    labels: list[str] = []
    for place in rng.permutation(len(answered))[:_SQUAD]:
        item = answered[place]
        bounds = [0, *(end.end() for end in _SENTENCE_END.finditer(item.context))]
        places = {int(np.searchsorted(bounds, first, "right")) - 1 for _, first in item.answers}
        sentences = [item.context[a:b] for a, b in zip(bounds, [*bounds[1:], None], strict=True)]
        others = [i for i in range(len(sentences)) if i not in places]
        for i in [min(places), *rng.permutation(others)[:3]]:
            texts.append((item.question, sentences[i].strip()))
            labels.append("1" if i in places else "0")
    return Examples(texts, labels)


def softened(data: Examples) -> Examples:
    """The labels' mean with the cosine of the two texts, by the model to begin with."""
    model = load(MODEL)
    queries = model.encode(queries_of(data), normalize_embeddings=True)
    documents = model.encode([text[1] for text in data.texts], normalize_embeddings=True)
    cosines = (queries * documents).sum(axis=1).clip(0, 1)
    pairs = zip(data.labels, cosines, strict=True)
    return Examples(data.texts, [f"{(float(label) + cosine) / 2:.4f}" for label, cosine in pairs])


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

    def run(source: Path | str, name: str, learned: Examples) -> Run:
        settings = Settings(batch_size=16, seed=seed)
        return Run(
            str(source),
            out / name,
            softened(learned),
            held,
            metric=METRIC,
            max_length=MAX_LENGTH,
            settings=settings,
            say=say,
        )

    if not (out / "begun").exists():
        finetune(run(MODEL, "begun", of_squad(data, seed)), epochs=epochs, rate=1e-4)
    if not (out / "dense").exists():
        finetune(run(out / "begun", "dense", examples), epochs=epochs)
    for name, policy in (policies or {}).items():
        if not (out / name).exists():
            finetune(run(out / "dense", name, examples), epochs=1, rate=3e-5, policy=policy)
    for share in shares:
        name = f"ltp-{share:g}"
        if not (out / name).exists():
            train_ltp(run(out / "dense", name, examples), target=share)
