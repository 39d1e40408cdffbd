"""Decisions held at a budget while the weights learn, and what the steps are computed in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import run_of
from torch import Tensor, nn

from tokprune_rt import _core, load
from tokprune_rt.train import (
    Examples,
    Schedule,
    Settings,
    evaluate,
    finetune,
    learning,
    train_ltp,
)
from tokprune_rt.train.budget import Widths, factor_near
from tokprune_rt.train.gates import Gates
from tokprune_rt.train.holding import Held
from tokprune_rt.train.masked import attention_context
from tokprune_rt.train.tasks import TextTask


def test_the_factor_follows_the_weights_at_equal_intervals() -> None:
    """Three steps an epoch, two epochs, four fits: the last one when the last step is over."""
    model, fitted = nn.Linear(1, 1).eval(), []

    def fit(near: float) -> float:
        fitted.append(near)
        return near + 1

    held = Held(1.0, fit, lambda factor: [factor], model, times=4)
    factors = []
    for step in range(1, 7):
        held.after_step(step / 6)
        factors.append(held.chooser())
    assert factors == [[1.0], [2.0], [3.0], [3.0], [4.0], [5.0]]
    assert fitted == [1.0, 2.0, 3.0, 4.0]
    assert held.chooser() is held.chooser()
    # A fit evaluates the model; steps go on in training mode.
    assert model.training
    assert list(held.parameters()) == [] and len(list(held.modules())) == 1


def test_a_checkpoint_brings_the_factor_back() -> None:
    def held(factor: float) -> Held:
        return Held(factor, lambda near: near * 2, lambda made: made, nn.Linear(1, 1), times=2)

    before, after = held(1.1), held(7.0)
    before.after_step(0.5)
    after.load_state_dict(before.state_dict())
    assert after.chooser() == before.chooser() == 2.2
    after.after_step(0.9)
    assert after.chooser() == 2.2
    after.after_step(1.0)
    assert after.chooser() == 4.4


@pytest.mark.parametrize("target", [0.42, 0.48, 0.5, 0.55])
def test_a_factor_is_looked_for_near_the_last_one(target: float) -> None:
    """A smooth curve is met in a few evaluations; of steps, the nearest one tried is taken."""
    asked: list[float] = []

    def macs(factor: float) -> float:
        asked.append(factor)
        return 1 / (1 + factor)

    found = factor_near(target, macs, 1.0)
    assert macs(found) == pytest.approx(target, abs=1e-3)
    assert asked[0] == 1.0 and len(asked) <= 5

    def steps(factor: float) -> float:
        return 0.6 if factor < 1.1 else 0.4

    if target != 0.5:
        assert steps(factor_near(target, steps, 1.0)) == (0.6 if target > 0.5 else 0.4)
    assert factor_near(0.1, macs, 1.0) == pytest.approx(math.exp(0.4))


def test_the_second_stage_follows_its_budget(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two fits an epoch, each from the one before; and decisions that did not learn are said."""
    finetune(run_of(tiny("bert"), tmp_path / "dense"), epochs=1, rate=3e-3)
    fits: list[float] = []

    def fit(_: float, __: Any, near: float) -> float:
        fits.append(near)
        return near * 1.25

    monkeypatch.setattr(learning, "factor_near", fit)
    lines: list[str] = []
    run = run_of(tmp_path / "dense", tmp_path / "out", say=lines.append)
    idle = Schedule(epochs=1, hard_epochs=2, rate=1e-3, method_rate=1e-9, copies=0)
    train_ltp(run, target=0.4, schedule=idle)
    assert len(fits) == 4
    assert fits == pytest.approx([fits[0] * 1.25**i for i in range(4)])
    assert any("have not learned this budget" in line for line in lines)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_says_what_it_computes_in_and_what_a_score_may_hide(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    monkeypatch.setattr(TextTask, "remark", lambda *_: "noted")
    lines: list[str] = []
    settings = Settings(batch_size=16, bf16=bf16)
    run = run_of(tiny("bert"), tmp_path / "out", say=lines.append, settings=settings)
    seen: set[bool] = set()
    monkeypatch.setattr(TextTask, "loss", _watching(TextTask.loss, seen))
    finetune(run, epochs=1)
    assert ("the steps' products are in bfloat16" in lines) is bf16 and "noted" in lines
    assert seen == {bf16}


def _watching(loss: Any, seen: set[bool]) -> Any:
    """``loss``, noting whether products are rounded around it."""

    def watched(*args: Any) -> Any:
        seen.add(torch.is_autocast_enabled("cpu"))
        return loss(*args)

    return watched


@pytest.mark.parametrize(
    ("device", "levels", "fast"),
    [
        ("cpu", ["scalar", "avx512_vnni", "avx512_bf16"], True),
        ("cpu", ["scalar", "avx512_vnni", "avx512_bf16", "amx"], True),
        ("cpu", ["scalar", "avx512_bf16", "avx512_vnni"], False),  # Intel without tiles
        ("meta", ["scalar", "avx512_bf16"], False),
    ],
)
def test_bf16_is_the_default_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, device: str, levels: list[str], fast: bool
) -> None:
    monkeypatch.setattr(_core, "isa_levels", lambda: levels)
    assert Settings(device=device).bf16 is fast
    assert Settings(device=device, bf16=not fast).bf16 is not fast


@pytest.mark.parametrize("biased", [False, True])
def test_attention_in_bfloat16_is_the_fused_one(
    monkeypatch: pytest.MonkeyPatch, biased: bool
) -> None:
    """Values and gradients, as close as bfloat16 is; keys that are not alive give nothing."""
    torch.manual_seed(0)
    heads = [torch.randn(2, 3, 9, 8) for _ in range(3)]
    alive = torch.ones(2, 9, dtype=torch.bool)
    bias = None
    if biased:
        alive[1, 5:] = False
        bias = torch.randn(2, 3, 9, 9).masked_fill(~alive[:, None, None, :], -math.inf)
    fused, kinds = nn.functional.scaled_dot_product_attention, []

    def noting(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kinds.append(query.dtype)
        return fused(query, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noting)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [part.detach().to(dtype, copy=True).requires_grad_() for part in heads]
        context = attention_context(*inputs, alive, bias)
        context.float().square().sum().backward()
        found.append([context.detach().float(), *(part.grad.float() for part in inputs)])
    for exact, narrow in zip(*found, strict=True):
        assert float((exact - narrow).norm()) < 0.02 * float(exact.norm())
    assert bool((found[1][3].transpose(1, 2)[~alive] == 0).all())
    assert kinds == [torch.float32]  # in bfloat16 its gradient is several times slower


def test_gates_stand_before_the_first_layer_where_the_budget_is_less() -> None:
    widths = Widths(6, 384, 1536)
    assert Gates(widths, "transkimmer", target=0.25).layers == (1, 2, 3, 4, 5)
    assert Gates(widths, "transkimmer", target=0.2).layers == (0, 1, 2, 3, 4, 5)
    assert Gates(widths, "tr-bert", target=0.2).layers == (0, 3)


def test_a_model_that_tells_nothing_apart_is_remarked() -> None:
    task = TextTask(("bad", "good"), "f1")
    same = [np.array([0.1, 0.2], np.float32)] * 3
    assert "every text gets the label 'good'" in str(task.remark(same))
    assert task.remark([*same, np.array([0.2, 0.1], np.float32)]) is None
    assert TextTask((), "spearman").remark([np.zeros(1, np.float32)] * 3) is None


def test_an_evaluation_says_it_too(tiny: Any) -> None:
    folder = tiny("bert", "sequence-classification")
    labels = load(folder).labels
    found = evaluate(folder, Examples(["a dog", "a dog"], [labels[0]] * 2), rounds=1)
    assert found.note is not None and "every text gets the label" in found.note
