"""The engine at reduced precision against the masked reference in the same arithmetic."""

from __future__ import annotations

from typing import Any

import gates
import numpy as np
import pytest
import torch
from engine_calls import rounds_rows
from parity import LAYERS, Tolerance, check, chunks, fewer, forward, plan_of
from reference import run

import tokprune_rt
from tokprune_rt import _core
from tokprune_rt.loader import load_model
from tokprune_rt.policy import preset

# Where both sides of a product are rounded, a difference in the last place now and then rounds to
# another step, and every layer multiplies such steps. Two layers still tell right from wrong.
SHALLOW = 2
BF16 = Tolerance("bf16-weights")
BF16_ROWS = Tolerance("bf16", states=0.1, scores=0.2, band=1e-2, agreeing=0.7)
INT8 = Tolerance("int8", states=0.1, scores=0.2, band=1e-2, agreeing=0.7)

PRESETS: dict[str, dict[str, Any]] = {
    "ltp": {"official": True, "final_threshold": 0.02},
    "topk": {"action": "restore"},
    "quantile": {"q": 0.3, "action": "package"},
    "top-p": {"p": 0.6},
    "power-bert": {},
    "spatten": {},
    "lat": {"action": "restore"},
    "top": {},
    "static-idf": {"ratio": 0.4, "action": "package"},
    "entropy": {"ratio": 0.8},
    "adapler": {"eta": 0.4},
    "mid-pool": {"ratio": 0.6},
    "jasper-pool": {},
}


def preset_plan(name: str, layers: int, token_ids: list[list[int]]) -> dict[str, Any]:
    parameters = dict(PRESETS[name])
    if name == "static-idf":
        parameters |= {"documents": token_ids, "vocab_size": 30522}
    if name == "adapler":
        parameters["gates"] = gates.perceptrons(layers, 384, 32, 1)
    return plan_of(preset(name, layers=layers, **parameters), layers)


class Truncated:
    """The first layers of a PyTorch model, for the reference."""

    def __init__(self, model: Any, layers: int) -> None:
        self.config, self.base_model_prefix = model.config, ""
        self.embeddings = model.embeddings
        self.encoder = torch.nn.Module()
        self.encoder.layer = model.encoder.layer[:layers]


def shallow(folder: Any, precision: str, layers: int = SHALLOW) -> Any:
    """The engine on the first layers of the model in ``folder``."""
    loaded = load_model(folder)
    weights: Any = loaded.weights
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith("layers.") or int(name.split(".")[1]) < layers
    }
    return _core.Encoder(loaded.core_config | {"layers": layers}, kept, 0, "", precision)


@pytest.fixture(scope="module")
def some_ids(token_ids: list[list[int]]) -> list[list[int]]:
    return fewer(token_ids, 10)


@pytest.fixture(scope="module")
def int8_encoder(minilm_folder: Any) -> Any:
    return shallow(minilm_folder, "int8")


@pytest.fixture(scope="module")
def bf16_encoder(minilm_folder: Any) -> Any:
    """The whole model, or its first layers where the activations are rounded as well."""
    encoder = tokprune_rt.load(minilm_folder, "off", "bf16").engine.encoder
    return shallow(minilm_folder, "bf16") if rounds_rows(encoder.isa) else encoder


@pytest.mark.parametrize("name", PRESETS)
def test_bf16_policies(
    bf16_encoder: Any, torch_model: Any, some_ids: list[list[int]], name: str
) -> None:
    """Without bfloat16 products only weights are rounded: as exact as fp32 on those weights."""
    model, layers, tolerance = torch_model, LAYERS, BF16
    if rounds_rows(bf16_encoder.isa):
        model, layers, tolerance = Truncated(torch_model, SHALLOW), SHALLOW, BF16_ROWS
    plan = preset_plan(name, layers, some_ids)
    assert check(bf16_encoder, model, some_ids, plan, tolerance) < 1


def test_bf16_rounds_what_its_level_says(
    minilm_folder: Any, torch_model: Any, some_ids: list[list[int]]
) -> None:
    """One layer is far nearer to its own arithmetic than to any other: weights alone, or both sides
    of all products, those of attention included."""
    encoder, model = shallow(minilm_folder, "bf16", 1), Truncated(torch_model, 1)
    rows = sorted(some_ids, key=len)[:8]
    states = forward(encoder, rows, None)["hidden"]
    apart = {}
    for arithmetic in ("fp32", "bf16-weights", "bf16-linear", "bf16"):
        exact = run(model, rows, None, dtype=torch.float32, precision=arithmetic).hidden
        apart[arithmetic] = float(np.abs(np.concatenate(exact) - states).mean())
    own = apart.pop("bf16" if rounds_rows(encoder.isa) else "bf16-weights")
    assert own < 0.25 * min(apart.values())


@pytest.mark.parametrize("name", PRESETS)
def test_int8_policies(
    int8_encoder: Any, torch_model: Any, some_ids: list[list[int]], name: str
) -> None:
    plan = preset_plan(name, SHALLOW, some_ids)
    assert check(int8_encoder, Truncated(torch_model, SHALLOW), some_ids, plan, INT8) < 1


def state_errors(encoder: Any, model: Any, token_ids: list[list[int]], arithmetic: str) -> Any:
    """Largest difference of every row, dense."""
    errors = []
    for rows in chunks(token_ids):
        expected = run(model, rows, None, dtype=torch.float32, precision=arithmetic).hidden
        difference = forward(encoder, rows, None)["hidden"] - np.concatenate(expected)
        errors.append(np.abs(difference).max(axis=1))
    return np.concatenate(errors)


def test_int8_layers_follow_the_documented_formulas(
    minilm_folder: Any, torch_model: Any, some_ids: list[list[int]]
) -> None:
    """After one layer most rows are exact: no step of theirs rounded the other way."""
    encoder, model = shallow(minilm_folder, "int8", 1), Truncated(torch_model, 1)
    errors = state_errors(encoder, model, some_ids, "int8")
    assert (errors <= 2e-5).mean() >= 0.85
    assert errors.max() <= 0.1
    # The formulas matter: no row is as close to float32.
    assert (state_errors(encoder, model, some_ids, "fp32") > 1e-3).all()


@pytest.mark.parametrize("length", [63, 64, 65])
def test_int8_attention_begins_at_64_rows(
    minilm_folder: Any, torch_model: Any, some_ids: list[list[int]], length: int
) -> None:
    rows = [item[: length - 1] + item[-1:] for item in some_ids if len(item) >= length]
    assert rows
    encoder, model = shallow(minilm_folder, "int8", 1), Truncated(torch_model, 1)
    assert (state_errors(encoder, model, rows, "int8") <= 2e-5).mean() >= 0.85
