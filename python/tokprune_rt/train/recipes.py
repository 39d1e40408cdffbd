"""Whole training runs: a folder and labelled texts in, a folder that runs here out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokprune_rt.files import check_new_folder
from tokprune_rt.loader import describe_model, resolve
from tokprune_rt.policy import Policy
from tokprune_rt.train.budget import Budget, Widths, factor_for
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
from tokprune_rt.train.gates import Gates
from tokprune_rt.train.hard import PolicyChooser
from tokprune_rt.train.latency import macs_for_speedup
from tokprune_rt.train.leaving import Leaving, leaving_of
from tokprune_rt.train.loop import CHECKPOINT, Say, Settings, Stage, Training
from tokprune_rt.train.ltp import LtpThresholds
from tokprune_rt.train.masked import MaskedEncoder, Pass
from tokprune_rt.train.method import Method
from tokprune_rt.train.power import PowerRetention
from tokprune_rt.train.tasks import Task
from tokprune_rt.train.teacher import Teacher
from tokprune_rt.train.top import TopMasks, ranking_loss


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


@dataclass(frozen=True)
class Schedule:
    """How long a method learns, and how fast.

    Attributes:
        epochs: of learning what to prune, with the weights.
        hard_epochs: of the weights alone, under the runtime's decisions.
        rate: learning rate of the weights; half of it in the second stage.
        method_rate: of the method's own parameters.
    """

    epochs: int = 3
    hard_epochs: int = 2
    rate: float = 3e-5
    method_rate: float = 1e-2


SCHEDULES = {
    "ltp": Schedule(),
    "top": Schedule(epochs=5, method_rate=0.05),
    "gate": Schedule(epochs=4, method_rate=1e-3),
    "power-bert": Schedule(),
}
"""What the recipes take when nothing else is asked for."""


def train_ltp(
    run: Run,
    *,
    target: float = 0.5,
    speedup: float | None = None,
    schedule: Schedule = SCHEDULES["ltp"],
    temperature: float = 0.05,
    s_pad: float | None = None,
) -> Result:
    """Learn thresholds on received attention, then fine-tune under the runtime's decisions.

    Args:
        run: its source is a fine-tuned model of the same task, which is also the teacher.
        target: multiply-adds, of the dense model's at the real lengths.
        speedup: instead of ``target``, how many times as fast as dense the runtime is to be on this
            machine, measured with the dev texts.
        schedule: its ``method_rate`` is in units of the mean score.
        temperature: of the soft decision, in the same units.
        s_pad: see `LtpThresholds`.

    Raises:
        ValueError: the source has no head for the task, or its labels are others.
    """

    def make(parts: Parts) -> LtpThresholds:
        return LtpThresholds(
            parts.widths,
            parts.protect,
            s_pad=s_pad,
            temperature=temperature,
            leaving=parts.leaving,
        )

    recipe = {"temperature": temperature, "s_pad": s_pad}
    return _learn("ltp", run, make, target, speedup, schedule, recipe)


def train_top(
    run: Run,
    *,
    target: float = 0.5,
    speedup: float | None = None,
    schedule: Schedule = SCHEDULES["top"],
    bins: int = 20,
    ranking: float = 1e-2,
) -> Result:
    """Learn which ranks leave at which layers under a budget of work, taught by the dense model.

    Args:
        run, target, speedup, schedule: as for `train_ltp`.
        bins: parts into which ranks are cut.
        ranking: weight of the teacher's order of the tokens in the early layers.

    Raises:
        ValueError: the source has no head for the task, or its labels are others.
    """

    def make(parts: Parts) -> TopMasks:
        return TopMasks(parts.widths, bins, parts.protect, parts.leaving)

    recipe = {"bins": bins, "ranking": ranking}
    return _learn("top", run, make, target, speedup, schedule, recipe, ranking)


def train_gate(
    run: Run,
    *,
    shape: str = "transkimmer",
    target: float = 0.5,
    speedup: float | None = None,
    schedule: Schedule = SCHEDULES["gate"],
) -> Result:
    """Learn small networks that read a token's state and say whether it goes on.

    Args:
        run, target, speedup, schedule: as for `train_ltp`.
        shape: a name of `gates.SHAPES`.

    Raises:
        ValueError: the source has no head for the task, or its labels are others; unknown shape.
    """

    def make(parts: Parts) -> Gates:
        return Gates(parts.widths, shape, parts.protect, parts.leaving)

    return _learn("gate", run, make, target, speedup, schedule, {"shape": shape})


def train_power_bert(
    run: Run,
    *,
    target: float = 0.5,
    speedup: float | None = None,
    schedule: Schedule = SCHEDULES["power-bert"],
) -> Result:
    """Learn how many tokens each layer keeps, whatever the text (PoWER-BERT); a baseline.

    Args:
        run, target, speedup, schedule: as for `train_ltp`.

    Raises:
        ValueError: the source has no head for the task, or its labels are others.
    """

    def make(parts: Parts) -> PowerRetention:
        if parts.leaving.restores:
            raise ValueError(
                "PoWER-BERT's extraction needs a head that reads the first token; this model's "
                "reads every token"
            )
        return PowerRetention(parts.widths, parts.longest, parts.protect)

    return _learn("power-bert", run, make, target, speedup, schedule, {})


# Rate of the budget's multipliers, and examples whose work decides the final thresholds.
_BUDGET_RATE, _SAMPLE = 0.05, 512


@dataclass(frozen=True)
class Parts:
    """What methods are made of: see `Method`; ``longest``: tokens of the longest example."""

    widths: Widths
    protect: list[int]
    leaving: Leaving
    longest: int


def _learn(
    name: str,
    run: Run,
    make: Callable[[Parts], Method],
    target: float,
    speedup: float | None,
    schedule: Schedule,
    recipe: Mapping[str, Any],
    ranking: float = 0.0,
) -> Result:
    """The two stages that all methods share."""
    source = resolve(run.source)
    model, teacher = finetuned_model(source), finetuned_model(source)
    task = task_of_model(model, run.regression, run.metric)
    if speedup is not None:
        target = _measured_target(run, source, task, speedup)
    config, _ = describe_model(source)
    budget = Budget(target)
    widths = Widths(config.layers, config.hidden, config.intermediate)
    facts = {"method": name, "target": target, **asdict(schedule), **recipe}
    training = _training(run, source, model, task, facts)
    torch.manual_seed(run.settings.seed)  # of the method's parameters
    longest = max(len(item) for item in training.train.tokens)
    method = make(Parts(widths, separators(source), leaving_of(task.kind), longest))
    device = run.settings.device
    for module in (method, budget, teacher):
        nn.Module.to(module, device)
    dense, _ = training.evaluate(None)
    run.say(f"dense: dev {dense:.2f}")
    teaching = Teacher(MaskedEncoder(teacher))

    def distilled(logits: Tensor, targets: Tensor, passed: Pass, _: float) -> Tensor:
        if task.is_regression:
            return task.loss(logits, targets)
        return task.distance(logits, teaching.logits(passed))

    def loss(logits: Tensor, targets: Tensor, passed: Pass, done: float) -> Tensor:
        total = budget(method.expected_macs(passed), done)
        if not ranking:
            return total + distilled(logits, targets, passed, done)
        taught, order = teaching.look(passed)
        candidates = passed.real & ~passed.notes["protected"]
        early = passed.scores[: max(1, config.layers // 3)]
        losses = [ranking_loss(scores, order, candidates) for scores in early]
        total = total + ranking * max(0.01, 1 - done) * torch.stack(losses).mean()
        own = task.loss if task.is_regression else task.distance
        return total + own(logits, targets if task.is_regression else taught)

    soft = Stage(
        f"{method.name}-soft",
        schedule.epochs,
        schedule.rate,
        lambda: method.chooser() if method.training else PolicyChooser(method.policy()),
        loss,
        {"method": (method, schedule.method_rate), "budget": (budget, _BUDGET_RATE)},
        method.after_step,
        keep_best=False,
    )
    training.run_stage(soft)
    sample = training.sample(_SAMPLE)

    def macs(factor: float) -> float:
        return training.macs(PolicyChooser(method.policy(factor)), sample, method.macs)

    factor = factor_for(target, macs)
    run.say(
        f"multiply-adds: {macs(1.0):.1%} of dense as learned, {macs(factor):.1%} adjusted, asked "
        f"for {target:.1%}"
    )
    policy = method.policy(factor)
    hard = Stage(
        f"{method.name}-hard",
        schedule.hard_epochs,
        schedule.rate / 2,
        lambda: PolicyChooser(policy),
        distilled,
    )
    training.run_stage(hard)
    # What the weights learned may have moved scores.
    factor = factor_for(target, macs)
    chooser = PolicyChooser(method.policy(factor))
    score, _ = training.evaluate(chooser)
    reached = training.macs(chooser, training.dev, method.macs)
    run.say(f"dev {score:.2f} with {reached:.1%} of the multiply-adds")
    if reached > target + 0.05:
        run.say(
            f"the budget was missed: {reached:.1%} on the dev texts; try more epochs, a higher "
            "rate of the method or a larger target"
        )
    facts |= {
        "macs": round(reached, 4),
        "metric": {"name": task.metric, "dense": round(dense, 3), "pruned": round(score, 3)},
    }
    _finish(run, source, model, method.policy(factor, provenance=_provenance(run, facts)))
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
