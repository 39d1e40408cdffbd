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
from tokprune_rt.policy import DEFAULT, OFF, PolicySource
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train.answering import AnswerTask
from tokprune_rt.train.data import Data, Encoded
from tokprune_rt.train.folders import check_one_label, existing_task
from tokprune_rt.train.tagging import TagTask
from tokprune_rt.train.tasks import Floats, Task, TextTask

_BATCH = 32
_SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """One precision and profile.

    Attributes:
        score: in points.
        kept: share of the tokens left after each layer.
        macs: multiply-adds in the encoder layers, every layer in full for the tokens in it, of the
            dense model's at the real lengths.
        macs_padded: the dense model's with every text padded to ``padded_to`` tokens, likewise.
        ms: milliseconds for all texts, median.
        speedup: the dense pass in the same precision took so many times as long.
        answer_lost: of question answering, the share of the answers' tokens that is gone after the
            last layer.
    """

    precision: str
    profile: str
    score: float
    kept: list[float]
    macs: float
    macs_padded: float
    ms: float
    speedup: float
    answer_lost: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All rows, and what they were measured on; ``note``: what to know about the data, or of the
    dense model's answers."""

    folder: str
    metric: str
    examples: int
    tokens: int
    padded_to: int
    rows: list[Row]
    note: str | None = None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def evaluate(
    folder: str | os.PathLike[str],
    data: Data,
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
        folder: a classification or regression of texts, a tagging or a question answering, with or
            without a policy, as `load` takes it.
        data: labelled data for it.
        policy: as `load` takes it; "auto" is the folder's own.
        metric: as in `Run`.
        precisions: as `load` takes them.
        padded_to: the length of the padded baseline, whose multiply-adds are only counted.
        threads: of the runtime.
        rounds: timed passes of each profile, at most.

    Raises:
        ValueError: the model has another task than the data, or the labels are not its own.
    """
    model = load(folder, policy, precision=precisions[0], threads=threads)
    task = task_of(model, metric)
    encoded = task.encode(data, model.tokenizer)
    tokens = encoded.tokens
    asked = [] if model.policy is None else [None, *model.policy.profiles]
    rows: list[Row] = []
    remark: str | None = None
    for number, precision in enumerate(precisions):
        if number:
            model = load(folder, policy, precision=precision, threads=threads)
        padded = padded_macs(model, tokens, padded_to)
        profiles = [OFF, *asked]
        timed = _timed(model, encoded, profiles, rounds)
        for name, (found, timing, speedup) in zip(profiles, timed, strict=True):
            rows.append(
                Row(
                    model.precision,
                    DEFAULT if name is None else name,
                    task.score(found.logits, encoded),
                    [float(kept) / found.tokens for kept in found.kept],
                    found.macs / found.macs_dense,
                    padded / found.macs_dense,
                    timing.median_ms,
                    speedup,
                    found.lost,
                )
            )
        remark = remark or task.remark(timed[0][0].logits)
    total = sum(len(item) for item in tokens)
    note = "; ".join(filter(None, (encoded.note, remark))) or None
    return Evaluation(str(folder), task.metric, len(data), total, padded_to, rows, note)


def _timed(
    model: Model, data: Encoded, profiles: Sequence[str | None], rounds: int
) -> list[tuple[Texts, Timing, float]]:
    """Each profile's pass, its time, and how many times as long the first profile's took."""

    calls = [answering(model, data.tokens, profile) for profile in profiles]
    answers = data.targets.numpy() if model.config.task == AnswerTask.kind else None
    passes = [run_texts(model, data.tokens, profile, answers) for profile in profiles]
    timings = alternate(calls, rounds, _SECONDS)
    return [
        (found, timing, timing.times_faster_than(timings[0]))
        for found, timing in zip(passes, timings, strict=True)
    ]


def answering(model: Model, tokens: Sequence[Tokens], profile: str | None) -> Callable[[], None]:
    """What is timed: the passes that the runtime's tasks make, from token ids to logits.

    A head that reads the first token spares the others' rows in the last layer, dense or pruned.
    """

    def run() -> None:
        for _ in model.engine.run(tokens, "logits", profile=profile, batch_size=_BATCH):
            pass

    return run


@dataclass(frozen=True)
class Texts:
    """One pass over many texts: the logits of each, float32 [outputs] or [tokens, outputs], and the
    work done. ``lost``: as `Row.answer_lost`."""

    logits: list[Floats]
    kept: NDArray[np.int64]
    tokens: int
    macs: int
    macs_dense: int
    lost: float | None = None


def run_texts(
    model: Model,
    tokens: Sequence[Tokens],
    profile: str | None,
    answers: NDArray[np.int64] | None = None,
) -> Texts:
    """All texts through the runtime, in batches of neighbours in length.

    ``answers`` [n, 2] are first and last token of an answer, (0, 0) for none, whose loss is to be
    counted.
    """
    order = np.argsort([-len(item) for item in tokens], kind="stable")
    logits: list[Floats] = [np.zeros(0, np.float32)] * len(tokens)
    kept = np.zeros(model.config.layers, np.int64)
    macs = macs_dense = asked = there = 0
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        part = [tokens[i] for i in places]
        found = model.forward(
            [item.ids for item in part],
            [item.type_ids for item in part] if model.config.type_vocab_size > 1 else None,
            profile,
            segment_ids=[item.segments for item in part],
            trace=answers is not None,
        )
        assert found.logits is not None
        for place, rows in zip(places, found.logits, strict=True):
            logits[place] = rows
        if answers is not None and found.trace is not None:
            for place, left in zip(places, found.trace.kept[-1], strict=True):
                first, last = answers[place]
                if last > 0:
                    asked += int(last - first) + 1
                    there += int(((left >= first) & (left <= last)).sum())
        kept += found.stats.kept_per_layer
        macs += found.stats.macs
        macs_dense += found.stats.macs_dense
    lost = 1 - there / asked if asked else None
    return Texts(logits, kept, sum(len(item) for item in tokens), macs, macs_dense, lost)


def task_of(model: Model, metric: str | None) -> Task:
    """The task of a loaded model; ValueError for one that answers nothing."""
    known = [TextTask.kind, TagTask.kind, AnswerTask.kind]
    if model.config.task not in known:
        raise ValueError(
            f"evaluate needs a {', '.join(known)} model; {model.name} is a {model.config.task} "
            f"model ({model.config.architecture})"
        )
    check_one_label(model.config.problem_type)
    return existing_task(model.config.task, tuple(model.labels), metric)


def padded_macs(model: Model, tokens: Sequence[Tokens], length: int) -> int:
    """Multiply-adds of the dense model with every shorter text padded to ``length``."""
    config = model.config
    lengths = np.array([max(len(item), length) for item in tokens], np.int64)
    return dense_macs(lengths, config.layers, config.hidden, config.intermediate)
