"""Decisions held at a budget while the weights learn, and what the steps are computed in."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tokprune_rt import _core
from tokprune_rt.train import Settings
from tokprune_rt.train.budget import Widths, factor_for
from tokprune_rt.train.gates import Gates
from tokprune_rt.train.holding import Held
from tokprune_rt.train.masked import attention_context


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


def test_a_factor_is_looked_for_near_the_last_one() -> None:
    asked: list[float] = []

    def macs(factor: float) -> float:
        asked.append(factor)
        return 1 / (1 + factor)

    assert factor_for(0.48, macs, near=1.0) == pytest.approx(0.52 / 0.48, rel=5e-3)
    assert asked[0] == 1.0 and all(1 / 1.5 <= factor <= 1.5 for factor in asked)


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
def test_attention_in_bfloat16_is_the_fused_one(biased: bool) -> None:
    """Values and gradients, as close as bfloat16 is; keys that are not alive give nothing."""
    torch.manual_seed(0)
    heads = [torch.randn(2, 3, 9, 8) for _ in range(3)]
    alive = torch.ones(2, 9, dtype=torch.bool)
    bias = None
    if biased:
        alive[1, 5:] = False
        bias = torch.randn(2, 3, 9, 9).masked_fill(~alive[:, None, None, :], -math.inf)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [part.detach().to(dtype, copy=True).requires_grad_() for part in heads]
        context = attention_context(*inputs, alive, bias)
        context.float().square().sum().backward()
        found.append([context.detach().float(), *(part.grad.float() for part in inputs)])
    for exact, narrow in zip(*found, strict=True):
        assert float((exact - narrow).norm()) < 0.02 * float(exact.norm())
    assert bool((found[1][3].transpose(1, 2)[~alive] == 0).all())


def test_gates_stand_before_the_first_layer_where_the_budget_is_less() -> None:
    widths = Widths(6, 384, 1536)
    assert Gates(widths, "transkimmer", target=0.25).layers == (1, 2, 3, 4, 5)
    assert Gates(widths, "transkimmer", target=0.2).layers == (0, 1, 2, 3, 4, 5)
    assert Gates(widths, "tr-bert", target=0.2).layers == (0, 3)
