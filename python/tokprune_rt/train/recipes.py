"""Whole training runs: a folder and labelled texts in, a folder that runs here out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokprune_rt.files import check_new_folder
from tokprune_rt.loader import describe_model, resolve
from tokprune_rt.policy import Policy
from tokprune_rt.train.data import Data, tokenizer_of
from tokprune_rt.train.folders import (
    encoded,
    finetuned_model,
    new_model,
    new_task,
    separators,
    task_of_model,
    write_model,
)
from tokprune_rt.train.hard import PolicyChooser
from tokprune_rt.train.latency import macs_for_speedup
from tokprune_rt.train.leaving import leaving_of
from tokprune_rt.train.loop import CHECKPOINT, Say, Settings, Stage, Training
from tokprune_rt.train.ltp import LtpThresholds, SoftLtp, share_that_stays
from tokprune_rt.train.masked import MaskedEncoder, Pass
from tokprune_rt.train.tasks import Task
from tokprune_rt.train.top import Budget, SoftTop, Teacher, TopMasks, Widths


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


def finetune(run: Run, *, epochs: int = 3, rate: float = 5e-5) -> Result:
    """Train a dense classification or regression of texts, a tagging, or question answering."""
    source = resolve(run.source)
    task = new_task(run.train, run.regression, run.metric)
    torch.manual_seed(run.settings.seed)  # of the head
    model = new_model(source, task)
    recipe = {"method": "finetune", "epochs": epochs, "rate": rate}
    training = _training(run, source, model, task, recipe)
    score = training.run_stage(Stage("finetune", epochs, rate))
    _finish(run, source, model, None)
    return Result(run.out, {"dense": score})


def train_ltp(
    run: Run,
    *,
    penalty: float = 0.1,
    soft_epochs: int = 3,
    hard_epochs: int = 2,
    rate: float = 2e-5,
    threshold_rate: float = 5e-3,
    temperature: float = 0.05,
    s_pad: float | None = None,
) -> Result:
    """Learn thresholds on received attention, then fine-tune under the runtime's decisions.

    Args:
        run: its source is a fine-tuned model of the same task.
        penalty: weight of the share of tokens that stay; higher prunes more.
        soft_epochs, hard_epochs: of the two stages.
        rate: learning rate of the weights.
        threshold_rate: of the thresholds, in units of the mean score.
        temperature: of the soft decision, in the same units.
        s_pad: see `LtpThresholds`.

    Raises:
        ValueError: the source has no head for the task, or its labels are others.
    """
    source = resolve(run.source)
    model = finetuned_model(source)
    task = task_of_model(model, run.regression, run.metric)
    recipe = {
        "method": "ltp",
        "penalty": penalty,
        "soft_epochs": soft_epochs,
        "hard_epochs": hard_epochs,
        "rate": rate,
        "threshold_rate": threshold_rate,
        "temperature": temperature,
        "s_pad": s_pad,
    }
    training = _training(run, source, model, task, recipe)
    thresholds = LtpThresholds(
        len(training.encoder.layers),
        separators(source),
        s_pad=s_pad,
        leaving=leaving_of(task.kind),
    )
    thresholds.to(run.settings.device)
    dense, _ = training.evaluate(None)
    run.say(f"dense: dev {dense:.2f}")

    def loss(logits: Tensor, targets: Tensor, passed: Pass, done: float) -> Tensor:
        return task.loss(logits, targets) + penalty * share_that_stays(passed)

    soft = Stage(
        "ltp-soft",
        soft_epochs,
        rate,
        lambda: (
            SoftLtp(thresholds, temperature)
            if thresholds.training
            else PolicyChooser(thresholds.policy())
        ),
        loss,
        {"thresholds": (thresholds, threshold_rate)},
        lambda _: thresholds.limit(),
        keep_best=False,
    )
    training.run_stage(soft)
    policy = thresholds.policy()
    hard = Stage("ltp-hard", hard_epochs, rate / 2, lambda: PolicyChooser(policy))
    score = training.run_stage(hard)
    facts = {
        **recipe,
        "metric": {"name": task.metric, "dense": round(dense, 3), "pruned": round(score, 3)},
    }
    _finish(run, source, model, thresholds.policy(provenance=_provenance(run, facts)))
    return Result(run.out, {"dense": dense, "pruned": score})


def train_top(
    run: Run,
    *,
    target: float = 0.5,
    speedup: float | None = None,
    bins: int = 20,
    epochs: int = 5,
    hard_epochs: int = 2,
    rate: float = 3e-5,
    mask_rate: float = 0.05,
    ranking: float = 1e-2,
) -> Result:
    """Learn which ranks leave at which layers under a budget of work, taught by the dense model.

    Args:
        run: its source is a fine-tuned model of the same task.
        target: multiply-adds, of the dense model's at the real lengths.
        speedup: instead of ``target``, how many times as fast as dense the runtime is to be on this
            machine, measured with the dev texts.
        bins: parts into which ranks are cut.
        epochs, hard_epochs: of the two stages.
        rate: learning rate of the weights.
        mask_rate: of bits, gates and multipliers.
        ranking: weight of the teacher's order of the tokens in the early layers.

    Raises:
        ValueError: the source has no head for the task, or its labels are others.
    """
    source = resolve(run.source)
    model, teacher = finetuned_model(source), finetuned_model(source).eval()
    task = task_of_model(model, run.regression, run.metric)
    if speedup is not None:
        target = _measured_target(run, source, task, speedup)
    recipe = {
        "method": "top",
        "target": target,
        "bins": bins,
        "epochs": epochs,
        "hard_epochs": hard_epochs,
        "rate": rate,
        "mask_rate": mask_rate,
        "ranking": ranking,
    }
    config, _ = describe_model(source)
    widths = Widths(config.layers, config.hidden, config.intermediate)
    masks = TopMasks(widths, bins, separators(source), leaving_of(task.kind))
    budget = Budget(target)
    masks.to(run.settings.device)
    budget.to(run.settings.device)
    training = _training(run, source, model, task, recipe)
    dense, _ = training.evaluate(None)
    run.say(f"dense: dev {dense:.2f}")
    teaching = Teacher(MaskedEncoder(teacher.to(run.settings.device)), masks)

    def loss(logits: Tensor, targets: Tensor, passed: Pass, done: float) -> Tensor:
        expected = masks.expected_macs(passed.lengths, passed.notes["protected"].sum(dim=1))
        taught, order = teaching(passed)
        own = task.loss if task.is_regression else task.distance
        total = own(logits, targets if task.is_regression else taught)
        total = total + ranking * max(0.01, 1 - done) * order
        return total + budget(expected, done)

    soft = Stage(
        "top-soft",
        epochs,
        rate,
        lambda: SoftTop(masks) if masks.training else PolicyChooser(masks.policy()),
        loss,
        {"masks": (masks, mask_rate), "budget": (budget, mask_rate)},
        lambda _: masks.limit(),
        keep_best=False,
    )
    training.run_stage(soft)
    policy = masks.policy()
    reached = masks.frozen_share(training.dev.tokens)
    run.say(f"multiply-adds: {reached:.1%} of dense, asked for {target:.1%}")
    if reached > target + 0.05:
        run.say(
            "the budget was missed: try more epochs, a higher mask rate or a larger target "
            f"(there were {epochs} epochs of {len(run.train)} examples)"
        )

    def distilled(logits: Tensor, targets: Tensor, passed: Pass, _: float) -> Tensor:
        if task.is_regression:
            return task.loss(logits, targets)
        return task.distance(logits, teaching.logits(passed))

    hard = Stage("top-hard", hard_epochs, rate / 2, lambda: PolicyChooser(policy), distilled)
    score = training.run_stage(hard)
    facts = {
        **recipe,
        "macs": round(reached, 4),
        "metric": {"name": task.metric, "dense": round(dense, 3), "pruned": round(score, 3)},
    }
    _finish(run, source, model, masks.policy(provenance=_provenance(run, facts)))
    return Result(run.out, {"dense": dense, "pruned": score}, reached)


def _training(
    run: Run, source: Path, model: PreTrainedModel, task: Task, recipe: Mapping[str, Any]
) -> Training:
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


def _measured_target(run: Run, source: Path, task: Task, speedup: float) -> float:
    """The multiply-adds of a speed-up: measured once in a run, since times vary."""
    path = checkpoints_of(run.out) / "target.json"
    if path.exists():
        return float(json.loads(path.read_text(encoding="utf-8")))
    tokens = task.encode(run.dev, tokenizer_of(source, run.max_length)).tokens
    target = round(macs_for_speedup(source, tokens, speedup), 4)
    run.say(f"{speedup:g} times as fast: {target:.1%} of the multiply-adds")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(target), encoding="utf-8")
    return target


def _finish(run: Run, source: Path, model: PreTrainedModel, policy: Policy | None) -> None:
    """Write the result; then the checkpoints are of no use."""
    write_model(run.out, source, model, run.max_length, policy)
    shutil.rmtree(checkpoints_of(run.out))


def _provenance(run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts, "base_model": Path(run.source).name, "seed": run.settings.seed}
