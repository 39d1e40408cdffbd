"""What a trained folder is worth in the runtime: score, tokens, multiply-adds, milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.bench.timing import Timing, alternate
from tokprune_rt.loading import load
from tokprune_rt.model import Model
from tokprune_rt.outputs import dense_macs
from tokprune_rt.policy import OFF, PolicySource
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train.data import Examples
from tokprune_rt.train.tasks import Task

PLAIN = "policy"
"""How a table calls the policy's own numbers, beside its profiles."""

_BATCH = 32
_SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """One precision and profile.

    Attributes:
        score: in points.
        kept: share of the tokens left after each layer.
        macs: multiply-adds in the encoder layers, of the dense model's at the real lengths.
        macs_padded: the dense model's with every text padded to ``padded_to`` tokens, likewise.
        ms: milliseconds for all texts, median.
        speedup: the dense pass in the same precision took so many times as long.
    """

    precision: str
    profile: str
    score: float
    kept: list[float]
    macs: float
    macs_padded: float
    ms: float
    speedup: float


@dataclass(frozen=True)
class Evaluation:
    """All rows, and what they were measured on."""

    folder: str
    metric: str
    examples: int
    tokens: int
    padded_to: int
    rows: list[Row]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def evaluate(
    folder: str | os.PathLike[str],
    data: Examples,
    *,
    policy: PolicySource = "auto",
    metric: str | None = None,
    precisions: Sequence[str] = ("fp32",),
    padded_to: int = 128,
    threads: int | None = None,
    rounds: int = 5,
) -> Evaluation:
    """Run the folder's model over labelled texts, dense and under every profile.

    Args:
        folder: a sequence classification or regression, with or without a policy, as `load` takes
            it.
        data: texts and labels.
        policy: as `load` takes it; "auto" is the folder's own.
        metric: a name of `tasks.METRICS`; None: accuracy or spearman.
        precisions: as `load` takes them.
        padded_to: the length of the padded baseline, whose multiply-adds are only counted.
        threads: of the runtime.
        rounds: timed passes of each profile, at most.

    Raises:
        ValueError: the model has another task, or the labels are not its own.
    """
    model = load(folder, policy, precision=precisions[0], threads=threads)
    model.require_task("sequence-classification", "evaluate")
    task = task_of(model, metric)
    targets = task.targets(data.labels)
    tokens = model.tokenizer.tokenize(data.texts)
    asked = [] if model.policy is None else [None, *model.policy.profiles]
    rows: list[Row] = []
    for number, precision in enumerate(precisions):
        if number:
            model = load(folder, policy, precision=precision, threads=threads)
        padded = padded_macs(model, tokens, padded_to)
        profiles = [OFF, *asked]
        timed = _timed(model, tokens, profiles, rounds)
        for name, (found, timing, speedup) in zip(profiles, timed, strict=True):
            rows.append(
                Row(
                    model.precision,
                    PLAIN if name is None else name,
                    task.score(found.logits, targets),
                    [float(kept) / found.tokens for kept in found.kept],
                    found.macs / found.macs_dense,
                    padded / found.macs_dense,
                    timing.median_ms,
                    speedup,
                )
            )
    total = sum(len(item) for item in tokens)
    return Evaluation(str(folder), task.metric, len(tokens), total, padded_to, rows)


def _timed(
    model: Model, tokens: Sequence[Tokens], profiles: Sequence[str | None], rounds: int
) -> list[tuple[Texts, Timing, float]]:
    """Each profile's pass, its time, and how many times as long the first profile's took."""

    def call(profile: str | None) -> Callable[[], Texts]:
        return lambda: run_texts(model, tokens, profile)

    calls = [call(profile) for profile in profiles]
    passes = [run() for run in calls]
    timings = alternate(calls, rounds, _SECONDS)
    return [
        (found, timing, timing.times_faster_than(timings[0]))
        for found, timing in zip(passes, timings, strict=True)
    ]


@dataclass(frozen=True)
class Texts:
    """One pass over many texts: logits float32 [n, outputs] and the work done."""

    logits: NDArray[np.float32]
    kept: NDArray[np.int64]
    tokens: int
    macs: int
    macs_dense: int


def run_texts(model: Model, tokens: Sequence[Tokens], profile: str | None) -> Texts:
    """All texts through the runtime, in batches of neighbours in length."""
    order = np.argsort([-len(item) for item in tokens], kind="stable")
    logits = np.zeros((len(tokens), len(model.labels)), np.float32)
    kept = np.zeros(model.config.layers, np.int64)
    macs = macs_dense = 0
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        part = [tokens[i] for i in places]
        found = model.forward(
            [item.ids for item in part],
            [item.type_ids for item in part] if model.config.type_vocab_size > 1 else None,
            profile,
            segment_ids=[item.segments for item in part],
        )
        logits[places] = found.logits
        kept += found.stats.kept_per_layer
        macs += found.stats.macs
        macs_dense += found.stats.macs_dense
    return Texts(logits, kept, sum(len(item) for item in tokens), macs, macs_dense)


def task_of(model: Model, metric: str | None) -> Task:
    """The task of a loaded model."""
    if len(model.labels) == 1:
        return Task((), metric or "spearman")
    return Task(tuple(model.labels), metric or "accuracy")


def padded_macs(model: Model, tokens: Sequence[Tokens], length: int) -> int:
    """Multiply-adds of the dense model with every shorter text padded to ``length``."""
    config = model.config
    lengths = np.array([max(len(item), length) for item in tokens], np.int64)
    return dense_macs(lengths, config.layers, config.hidden, config.intermediate)
