"""Whole training runs: a folder and labelled texts in, a folder that runs here out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch

from tokprune_rt.loader import describe_model, families, resolve
from tokprune_rt.loading import choose_policy
from tokprune_rt.policy import PolicySource, policy_hash
from tokprune_rt.train.folders import (
    new_model,
    new_task,
)
from tokprune_rt.train.gates import Gates
from tokprune_rt.train.learning import SCHEDULES, Parts, Schedule, learn
from tokprune_rt.train.ltp import LtpThresholds
from tokprune_rt.train.merging import executing
from tokprune_rt.train.power import PowerRetention
from tokprune_rt.train.runs import Result, Run, finish, one_at_a_time, training_of
from tokprune_rt.train.stage import Stage
from tokprune_rt.train.top import TopMasks


@one_at_a_time
def finetune(
    run: Run, *, epochs: int = 3, rate: float = 5e-5, policy: PolicySource | None = None
) -> Result:
    """Train a classification, regression or ranking of texts, a tagging, or question answering.

    ``policy``: the weights learn under its decisions, and it is written beside them; None: dense.

    Raises:
        PolicyError: the policy does not fit the model.
        ValueError: data of another task, or a policy with scores or actions that exist only in
            the runtime.
    """
    source = resolve(run.source)
    task = new_task(run.train, run.regression, run.metric)
    under = None
    if policy is not None:
        config, setup = describe_model(source)
        headed = replace(config, task=cast(families.Task, task.kind)), replace(setup, pooling=())
        under = choose_policy(policy, source, *headed)
    torch.manual_seed(run.settings.seed)  # of the head
    model = new_model(source, task)
    recipe: dict[str, Any] = {"method": "finetune", "epochs": epochs, "rate": rate}
    recipe["policy"] = None if under is None else policy_hash(under)
    training = training_of(run, source, model, task, recipe)
    encoder, chooser = (None, None) if under is None else executing(model, under, task.leaving)
    stage = Stage("finetune", epochs, rate, lambda: chooser, encoder=encoder)
    score = training.run_stage(stage)
    finish(run, source, model, under)
    return Result(run.out, {"dense" if under is None else "pruned": score})


@one_at_a_time
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
    return learn("ltp", run, make, target, speedup, schedule, recipe)


@one_at_a_time
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
        texts = (parts.lengths, parts.pinned)
        return TopMasks(parts.widths, bins, parts.protect, parts.leaving, parts.target, texts)

    recipe = {"bins": bins, "ranking": ranking}
    return learn("top", run, make, target, speedup, schedule, recipe, ranking)


@one_at_a_time
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
        return Gates(parts.widths, shape, parts.protect, parts.leaving, parts.target)

    return learn("gate", run, make, target, speedup, schedule, {"shape": shape})


@one_at_a_time
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

    return learn("power-bert", run, make, target, speedup, schedule, {})
