"""One training run: what it is given, its checkpoints, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from tokprune_rt.files import check_new_folder, only_process
from tokprune_rt.loader import describe_model
from tokprune_rt.policy import Policy, weights_digest
from tokprune_rt.train.data import Data, tokenizer_of
from tokprune_rt.train.folders import (
    encoded,
    write_model,
)
from tokprune_rt.train.latency import macs_for_speedup
from tokprune_rt.train.loop import CHECKPOINT, Training
from tokprune_rt.train.masked import MaskedEncoder
from tokprune_rt.train.stage import Say, Settings
from tokprune_rt.train.tasks import RankTask, Task


@dataclass(frozen=True)
class Run:
    """What every recipe is given.

    Attributes:
        source: the model to start from, as `load` takes it.
        out: the folder to write; until it is complete, checkpoints lie in a hidden one beside it.
        train, dev: the examples; what they are says what is learned.
        regression: the labels are numbers.
        metric: one of the task's; None: accuracy, spearman, entity-f1 (accuracy if the tags are no
            entities), or of answers f1.
        max_length: tokens to which texts are cut; None: the model's limit.
        settings: of the training loop.
        say: receives lines of progress.
    """

    source: str
    out: Path
    train: Data
    dev: Data
    regression: bool = False
    metric: str | None = None
    max_length: int | None = None
    settings: Settings = field(default_factory=Settings)
    say: Say = print


@dataclass(frozen=True)
class Result:
    """What a recipe wrote, with the dev scores in points that it saw on the way, and where there
    was a budget the share of the dense model's multiply-adds on the dev texts."""

    folder: Path
    scores: dict[str, float]
    macs: float | None = None


class _Writes(Protocol):
    @property
    def out(self) -> Path: ...


P = ParamSpec("P")
R = TypeVar("R", bound=_Writes)
T = TypeVar("T")


def one_at_a_time(recipe: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """A recipe that raises before anything begins: FileExistsError when the run's OUT is there,
    BlockingIOError while another process is making it."""

    @wraps(recipe)
    def wrapped(run: R, /, *arguments: P.args, **options: P.kwargs) -> T:
        check_new_folder(run.out)
        folder = checkpoints_of(run.out)
        with only_process(folder, run.out):
            try:
                return recipe(run, *arguments, **options)
            finally:
                # Nothing that a later run could go on from.
                if folder.exists() and [path.name for path in folder.iterdir()] == ["lock"]:
                    shutil.rmtree(folder)

    return wrapped


def model_facts(source: Path) -> dict[str, Any]:
    """What says which model a run began with: its folder may be written anew."""
    _, setup = describe_model(source)
    return {"model": str(source), "weights": weights_digest(setup.encoder_folder)}


def training_of(
    run: Run, source: Path, model: PreTrainedModel, task: Task, recipe: Mapping[str, Any]
) -> Training:
    """The training of a run; ``recipe``: what decides its result beside the run."""
    train = encoded(source, run.train, task, run.max_length, "training examples")
    dev = encoded(source, run.dev, task, run.max_length, "dev examples")
    if isinstance(task, RankTask):  # better than after an epoch: dev texts that say nothing
        task.score([np.zeros(1, np.float32)] * len(dev), dev)
    for note in (train.note, dev.note):
        if note is not None:
            run.say(note)
    content = hashlib.sha256(repr((run.train, run.dev)).encode()).hexdigest()
    facts = {
        **recipe,
        **model_facts(source),
        "metric": task.metric,
        "labels": list(task.labels),
        "max_length": run.max_length,
        "data": content[:16],
    }
    folder = checkpoints_of(run.out)
    return Training(MaskedEncoder(model), task, train, dev, run.settings, folder, run.say, facts)


def checkpoint_of(out: Path) -> Path | None:
    """The checkpoint from which a run that writes ``out`` would go on, if there is one."""
    path = checkpoints_of(out) / CHECKPOINT
    return path if path.exists() else None


def checkpoints_of(out: Path) -> Path:
    """Where a run that writes ``out`` keeps what it needs to go on after an interruption."""
    if not out.name:
        raise ValueError(f"{out}: give a folder a name of its own, which does not exist yet")
    return out.with_name(f".{out.name}.training")


def measured_target(run: Run, source: Path, task: Task, speedup: float) -> float:
    """The multiply-adds of a speed-up: measured once in a run, since times vary."""
    threads = torch.get_num_threads()
    asked = (model_facts(source), speedup, run.dev, run.max_length, threads)
    key = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
    path = checkpoints_of(run.out) / f"{key}-target.json"
    if path.exists():
        return float(json.loads(path.read_text(encoding="utf-8")))
    tokens = task.encode(run.dev, tokenizer_of(source, run.max_length)).tokens
    target = round(
        macs_for_speedup(source, tokens, speedup, leaving=task.leaving, threads=threads), 4
    )
    run.say(f"{speedup:g} times as fast: {target:.1%} of the multiply-adds")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(target), encoding="utf-8")
    return target


def finish(run: Run, source: Path, model: PreTrainedModel, policy: Policy | None) -> None:
    """Write the result; then the checkpoints are of no use."""
    write_model(run.out, source, model, run.max_length, policy)
    shutil.rmtree(checkpoints_of(run.out))


def provenance_of(run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a policy remembers of the run that made it."""
    return {**facts, "base_model": Path(run.source).name, "seed": run.settings.seed}
