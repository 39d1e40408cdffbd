"""One training run: what it is given, its checkpoints, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tokprune_rt.files import check_new_folder
from tokprune_rt.policy import Policy
from tokprune_rt.train.data import Data, tokenizer_of
from tokprune_rt.train.folders import (
    encoded,
    write_model,
)
from tokprune_rt.train.latency import macs_for_speedup
from tokprune_rt.train.loop import CHECKPOINT, Training
from tokprune_rt.train.masked import MaskedEncoder
from tokprune_rt.train.stage import Say, Settings
from tokprune_rt.train.tasks import Task


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


def training_of(
    run: Run, source: Path, model: PreTrainedModel, task: Task, recipe: Mapping[str, Any]
) -> Training:
    """The training of a run; ``recipe``: what decides its result beside the run."""
    check_new_folder(run.out)
    train = encoded(source, run.train, task, run.max_length, "training examples")
    dev = encoded(source, run.dev, task, run.max_length, "dev examples")
    for note in (train.note, dev.note):
        if note is not None:
            run.say(note)
    content = hashlib.sha256(repr((run.train, run.dev)).encode()).hexdigest()
    facts = {
        **recipe,
        "model": str(source),
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
    return out.with_name(f".{out.name}.training")


def measured_target(run: Run, source: Path, task: Task, speedup: float) -> float:
    """The multiply-adds of a speed-up: measured once in a run, since times vary."""
    key = hashlib.sha256(repr((str(source), speedup, run.dev)).encode()).hexdigest()[:16]
    path = checkpoints_of(run.out) / f"{key}-target.json"
    if path.exists():
        return float(json.loads(path.read_text(encoding="utf-8")))
    tokens = task.encode(run.dev, tokenizer_of(source, run.max_length)).tokens
    target = round(macs_for_speedup(source, tokens, speedup, leaving=task.leaving), 4)
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
