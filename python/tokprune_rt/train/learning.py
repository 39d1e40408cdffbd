"""The two stages in which every method learns what to prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokprune_rt.loader import describe_model, resolve
from tokprune_rt.train.altering import altered
from tokprune_rt.train.budget import Budget, Widths, factor_for, factor_near
from tokprune_rt.train.data import Encoded, Examples, tokenizer_of
from tokprune_rt.train.folders import (
    finetuned_model,
    separators,
    task_of_model,
)
from tokprune_rt.train.hard import PolicyChooser, pinned_tokens
from tokprune_rt.train.holding import Held
from tokprune_rt.train.leaving import Leaving
from tokprune_rt.train.loop import lengths_of
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
from tokprune_rt.train.tasks import Task
from tokprune_rt.train.teacher import Teacher, attention_of_all, logits_of_all
from tokprune_rt.train.top import ranking_loss


@dataclass(frozen=True)
class Schedule:
    """How long a method learns, and how fast.

    Attributes:
        epochs: of learning what to prune, with the weights.
        hard_epochs: of the weights alone, under the runtime's decisions.
        rate: learning rate of the weights.
        method_rate: of the method's own parameters.
        copies: altered copies of each text, see `altering`, from which the weights learn in the
            second stage as well; taggings and question answering have none.
    """

    epochs: int = 3
    hard_epochs: int = 2
    rate: float = 3e-5
    method_rate: float = 1e-2
    copies: int = 3


SCHEDULES = {
    "ltp": Schedule(),
    "top": Schedule(method_rate=0.05),
    "gate": Schedule(epochs=4, method_rate=1e-3),
    "power-bert": Schedule(),
}
"""What the recipes take when nothing else is asked for."""


# Examples whose work decides where a method begins and its final thresholds, and how often these
# are fitted in an epoch of the second stage.
_SAMPLE, _FITS_OF_AN_EPOCH = 512, 2
# Work above the target, of the dense model's, that is worth a word.
_FAR = 0.1


@dataclass(frozen=True)
class Parts:
    """What methods are made of: see `Method`; ``longest``: tokens of the longest example;
    ``target``: of the dense model's multiply-adds; ``lengths`` [n] and ``pinned`` [n]: tokens of
    some examples, and those of them that never leave."""

    widths: Widths
    protect: list[int]
    leaving: Leaving
    longest: int
    target: float
    lengths: Tensor
    pinned: Tensor


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
    model = finetuned_model(source)
    task = task_of_model(model, run.regression, run.metric)
    if speedup is not None:
        target = measured_target(run, source, task, speedup)
        recipe = {**recipe, "speedup": speedup, "threads": torch.get_num_threads()}
    config, _ = describe_model(source)
    widths = Widths(config.layers, config.hidden, config.intermediate)
    facts = {"method": name, "target": target, **asdict(schedule), **recipe}
    training = training_of(run, source, model, task, facts)
    torch.manual_seed(run.settings.seed)  # of the method's parameters
    protect, sample = separators(source), training.sample(_SAMPLE)
    pinned = pinned_tokens(task.leaving.rule(protect), training.inputs(sample, range(len(sample))))
    longest, lengths = max(lengths_of(training.train)), torch.tensor(lengths_of(sample))
    method = make(Parts(widths, protect, task.leaving, longest, target, lengths, pinned))
    budget = Budget(target, method.warm_up)
    device = run.settings.device
    for module in (method, budget):
        nn.Module.to(module, device)
    dense, _ = training.evaluate(None)
    run.say(f"dense: dev {dense:.2f}")
    examples = _widened(run, source, training.train, schedule.copies)

    def attention() -> list[Tensor]:
        teacher = nn.Module.to(finetuned_model(source), device)
        inputs = partial(training.inputs, training.train)
        return attention_of_all(MaskedEncoder(teacher), inputs, lengths_of(training.train))

    ask = {"logits": lambda: logits_of_all(source, examples.tokens), "scores": attention}
    teaching = Teacher(ask, training.beside_checkpoint, run.say)
    teaching.prepare(*(ask if ranking else ["logits"]))

    def taught(logits: Tensor, targets: Tensor, passed: Pass, _: float) -> Tensor:
        labelled = torch.tensor(passed.places, device=logits.device) < len(training.train)
        return distilled(task, logits, targets, teaching.logits(passed, logits), labelled)

    def loss(logits: Tensor, targets: Tensor, passed: Pass, done: float) -> Tensor:
        work = budget(method.expected_macs(passed), done, len(passed.lengths))
        total = work + taught(logits, targets, passed, done)
        if not ranking:
            return total
        order, candidates = teaching.scores(passed), passed.real & ~passed.notes["protected"]
        early = passed.scores[: max(1, config.layers // 3)]
        losses = [ranking_loss(scores, order, candidates) for scores in early]
        return total + ranking * max(0.01, 1 - done) * torch.stack(losses).mean()

    def after_step(done: float) -> None:
        method.after_step(done)
        budget.after_step()

    soft = Stage(
        f"{method.name}-soft",
        schedule.epochs,
        schedule.rate,
        lambda: method.chooser() if method.training else PolicyChooser(method.policy()),
        loss,
        {"method": (method, schedule.method_rate), "budget": (budget, 0.0)},
        after_step,
        keep_best=False,
    )
    training.run_stage(soft)

    executor, _ = executing(model, method.policy(), task.leaving)

    def chooser(factor: float) -> Any:
        return executing(model, method.policy(factor), task.leaving)[1]

    def macs(factor: float) -> float:
        return training.macs(chooser(factor), sample, method.macs, executor)

    fine_tuning, factor = f"{method.name}-hard", 1.0
    if not training.has_done(fine_tuning):  # otherwise its checkpoint has the factor
        factor = factor_for(target, macs)
        _say_budget(run, target, macs(1.0), macs(factor))
    # What the weights learn moves scores.
    held = Held(
        factor,
        partial(factor_near, target, macs),
        chooser,
        model,
        _FITS_OF_AN_EPOCH * schedule.hard_epochs,
    )
    hard = Stage(
        fine_tuning,
        schedule.hard_epochs,
        schedule.rate,
        held.chooser,
        taught,
        {"held": (held, 0.0)},
        held.after_step,
        encoder=executor,
        examples=examples,
    )
    training.run_stage(hard)
    factor = float(held.factor)
    final = PolicyChooser(method.policy(factor))
    score, _ = training.evaluate(final)
    reached = training.macs(final, training.dev, method.macs)
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


def _say_budget(run: Run, target: float, learned: float, adjusted: float) -> None:
    run.say(
        f"multiply-adds: {learned:.1%} of dense as learned, {adjusted:.1%} adjusted, asked for "
        f"{target:.1%}"
    )
    if learned > target + _FAR:
        run.say(
            "the decisions have not learned this budget, the adjustment takes what else it finds: "
            "more epochs, more texts or a higher rate of the method would choose better"
        )


def _widened(run: Run, source: Path, labelled: Encoded, copies: int) -> Encoded:
    """The training examples, and behind them altered copies, whose targets mean nothing."""
    if not copies or not isinstance(run.train, Examples):
        return labelled
    texts = altered(run.train.texts, copies, run.settings.seed)
    tokens = tokenizer_of(source, run.max_length).tokenize(texts)
    targets = [labelled.targets] * (1 + copies)
    return Encoded([*labelled.tokens, *tokens], torch.cat(targets))


def distilled(
    task: Task, logits: Tensor, targets: Tensor, answers: Tensor, labelled: Tensor
) -> Tensor:
    """How far from the dense model's ``answers``; or, where the ``targets`` are numbers and an
    example is ``labelled`` (bool [B]), from those."""
    if not task.is_regression:
        return task.distance(logits, answers)
    total = torch.zeros((), device=logits.device)
    for those, goal, loss in ((labelled, targets, task.loss), (~labelled, answers, task.distance)):
        if those.any():
            total = total + those.float().mean() * loss(logits[those], goal[those])
    return total
