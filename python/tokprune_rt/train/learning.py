"""The two stages in which every method learns what to prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokprune_rt.loader import describe_model, resolve
from tokprune_rt.train.budget import Budget, Widths, factor_for
from tokprune_rt.train.folders import (
    finetuned_model,
    separators,
    task_of_model,
)
from tokprune_rt.train.hard import PolicyChooser
from tokprune_rt.train.leaving import Leaving
from tokprune_rt.train.masked import MaskedEncoder, Pass
from tokprune_rt.train.merging import executing
from tokprune_rt.train.method import Method
from tokprune_rt.train.runs import (
    Result,
    Run,
    finish,
    measured_target,
    provenance_of,
    training_of,
)
from tokprune_rt.train.stage import Stage
from tokprune_rt.train.teacher import Teacher
from tokprune_rt.train.top import ranking_loss


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


# Rate of the budget's multipliers, and examples whose work decides the final thresholds.
_BUDGET_RATE, _SAMPLE = 0.05, 512


@dataclass(frozen=True)
class Parts:
    """What methods are made of: see `Method`; ``longest``: tokens of the longest example;
    ``target``: of the dense model's multiply-adds."""

    widths: Widths
    protect: list[int]
    leaving: Leaving
    longest: int
    target: float


def learn(
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
        target = measured_target(run, source, task, speedup)
    config, _ = describe_model(source)
    budget = Budget(target)
    widths = Widths(config.layers, config.hidden, config.intermediate)
    facts = {"method": name, "target": target, **asdict(schedule), **recipe}
    training = training_of(run, source, model, task, facts)
    torch.manual_seed(run.settings.seed)  # of the method's parameters
    longest = max(len(item) for item in training.train.tokens)
    method = make(Parts(widths, separators(source), task.leaving, longest, target))
    device = run.settings.device
    for module in (method, budget, teacher):
        nn.Module.to(module, device)
    dense, _ = training.evaluate(None)
    run.say(f"dense: dev {dense:.2f}")
    examples = training.train
    teaching = Teacher(
        MaskedEncoder(teacher),
        lambda places: training.inputs(examples, places),
        [len(item) for item in examples.tokens],
        training.beside_checkpoint("teacher.pt"),
        run.say,
    )

    def distilled(logits: Tensor, targets: Tensor, passed: Pass, _: float) -> Tensor:
        if task.is_regression:
            return task.loss(logits, targets)
        return task.distance(logits, teaching.logits(passed, logits))

    def loss(logits: Tensor, targets: Tensor, passed: Pass, done: float) -> Tensor:
        total = budget(method.expected_macs(passed), done) + distilled(
            logits, targets, passed, done
        )
        if not ranking:
            return total
        order, candidates = teaching.scores(passed), passed.real & ~passed.notes["protected"]
        early = passed.scores[: max(1, config.layers // 3)]
        losses = [ranking_loss(scores, order, candidates) for scores in early]
        return total + ranking * max(0.01, 1 - done) * torch.stack(losses).mean()

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
    encoder, frozen = executing(model, method.policy(factor), task.leaving)
    hard = Stage(
        f"{method.name}-hard",
        schedule.hard_epochs,
        schedule.rate / 2,
        lambda: frozen,
        distilled,
        encoder=encoder,
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
    finish(run, source, model, method.policy(factor, provenance=provenance_of(run, facts)))
    return Result(run.out, {"dense": dense, "pruned": score}, reached)
