"""Published artefacts, built here in their formats: the decisions that their spec defines."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from reference import compare_output
from reference import run as reference_run

import tokprune_rt
from tokprune_rt import _core
from tokprune_rt.errors import ModelFormatError, UnsupportedModelError
from tokprune_rt.policy import compile_plan, find_policy
from tokprune_rt.train import import_lat, import_ltp, import_top

ROWS = [[0, *range(10, 40), 2], [0, 50, 2], [0, *range(60, 80), 2, 2, *range(90, 110), 2], [0]]


def checkpoint(tiny: Any, folder: Path, **changes: Any) -> tuple[Path, Any]:
    """A RoBERTa classifier under the names of an LTP checkpoint, and the classifier."""
    source = tiny("roberta", "sequence-classification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    layers = model.config.num_hidden_layers
    folder.mkdir()
    state = {}
    for name, value in model.state_dict().items():
        state[name.replace("roberta.", "ibert.")] = value
        if name.endswith("query.weight"):
            state[name.replace("roberta.", "ibert.") + "_integer"] = torch.zeros_like(value)
            state[name.replace("roberta.", "ibert.") + "_scaling_factor"] = torch.zeros(1)
    state["ibert.embeddings.position_ids"] = torch.arange(8)
    for i in range(layers):
        delta = torch.tensor(0.002 * i)
        state[f"ibert.encoder.layer.{i}.attention.self.pruner.keep_threshold"] = delta
    torch.save(state, folder / "pytorch_model.bin")
    config = json.loads((source / "config.json").read_text())
    config |= {
        "model_type": "ltp",
        "architectures": ["IBertForSequenceClassification"],
        "prune_mode": "absolute_threshold",
        "final_token_threshold": 0.012,
        "quant_mode": False,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for path in source.iterdir():
        if path.suffix in (".json", ".txt") and path.name != "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder, model


def decides_as_specified(folder: Path, model: Any) -> dict[str, Any]:
    """The engine on the imported folder against the reference on the original weights."""
    policy = find_policy(folder)
    assert policy is not None
    plan = compile_plan(policy)
    assert plan is not None
    reference = reference_run(model, ROWS, plan, dtype=torch.float32)
    ours = tokprune_rt.load(folder, precision="fp32")
    flat = np.concatenate([np.asarray(row, np.int32) for row in ROWS])
    bounds = np.cumsum([0, *map(len, ROWS)]).astype(np.int32)
    found = ours.engine.encoder.forward(flat, bounds, plan=_core.Plan(plan), trace=True)
    result = compare_output(reference, found, 1e-5)
    assert result.mismatches == [] and len(result.agreeing) == len(ROWS)
    assert result.hidden < 5e-5
    kept = sum(len(row) for row in reference.kept[-1])
    assert kept < sum(map(len, ROWS))
    return plan


def test_ltp_thresholds(tiny: Any, tmp_path: Path) -> None:
    source, model = checkpoint(tiny, tmp_path / "ltp")
    folder = import_ltp(source, tmp_path / "out", s_pad=64)
    plan = decides_as_specified(folder, model)
    layers = model.config.num_hidden_layers
    theta = [np.float32(0.012 * i / layers) + np.float32(0.002 * i) for i in range(1, layers)]
    assert [step["layer"] for step in plan["steps"]] == list(range(1, layers))
    assert [step["select"]["theta"] for step in plan["steps"]] == pytest.approx(theta)
    assert plan["dead_first"] and plan["scores"][0]["n"] == 64
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([ROWS[0]])
    with torch.inference_mode():
        torch.testing.assert_close(dense(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"prune_mode": "topk", "token_keep_rate": 0.2},
        {"prune_mode": "threshold", "token_threshold": 0.5},
        {"scoring_mode": "mean_norm", "final_token_threshold": 0.05},
    ],
)
def test_other_modes_of_ltp(tiny: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    source, model = checkpoint(tiny, tmp_path / "ltp", num_hidden_layers=None, **changes)
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] = model.config.num_hidden_layers
    (source / "config.json").write_text(json.dumps(config))
    if changes.get("prune_mode") == "topk":
        # The first three layers always keep all.
        folder = import_ltp(source, tmp_path / "out")
        policy = find_policy(folder)
        assert policy is not None
        places = list(range(3, model.config.num_hidden_layers))
        assert [list(step.layers) for step in policy.steps] == ([places] if places else [])
        return
    decides_as_specified(import_ltp(source, tmp_path / "out"), model)


def test_top_masks(tiny: Any, tmp_path: Path) -> None:
    source = tiny("bert", "sequence-classification")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    bits = torch.tensor([[1.0, 1, 1, 0, 0], [1, 0, 1, 0, 1]])[: model.config.num_hidden_layers - 1]
    gates = torch.ones(len(bits))
    torch.save({"token_z": bits[:, None], "pruner_z": gates}, tmp_path / "zs.pt")
    folder = import_top(str(source), tmp_path / "zs.pt", tmp_path / "out")
    policy = find_policy(folder)
    assert policy is not None and policy.provenance["parity"] == "unverified"
    plan = decides_as_specified(folder, model)
    assert plan["steps"][0]["select"]["bin_rule"] == "float32"


def test_lat_lengths(tiny: Any, tmp_path: Path) -> None:
    source = tiny("bert", "sequence-classification")
    layers = transformers.AutoConfig.from_pretrained(source).num_hidden_layers
    lengths = {"fast": [16 - i for i in range(layers)], "slow": [30] * layers}
    (tmp_path / "l.json").write_text(json.dumps(lengths))
    folder = import_lat(str(source), tmp_path / "l.json", tmp_path / "out")
    model = tokprune_rt.load(folder)
    assert model.profiles == ["off", "fast", "slow"]
    kept = model.forward(ROWS[:1], profile="fast").stats.kept_per_layer
    assert list(kept) == lengths["fast"]


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_artefacts_that_are_none(tiny: Any, tmp_path: Path) -> None:
    source = tiny("bert", "sequence-classification")
    out, marker, file = tmp_path / "out", tmp_path / "ran", tmp_path / "zs.pt"
    with pytest.raises(ModelFormatError, match="model_type is 'bert'; an LTP checkpoint has 'ltp'"):
        import_ltp(source, out)
    quantised, _ = checkpoint(tiny, tmp_path / "q", quant_mode=True)
    with pytest.raises(UnsupportedModelError, match="quant_mode is true"):
        import_ltp(quantised, out)
    for name, mode in (
        ("final_token_threshold", "absolute_threshold"),
        ("token_keep_rate", "topk"),
        ("token_threshold", "threshold"),
        ("num_hidden_layers", "topk"),
    ):
        bare, _ = checkpoint(tiny, tmp_path / f"{mode}-{name}", prune_mode=mode, **{name: None})
        with pytest.raises(ModelFormatError, match=f"{name}: expected a number, found None"):
            import_ltp(bare, out)
    odd, _ = checkpoint(tiny, tmp_path / "o", prune_mode="magic")
    with pytest.raises(UnsupportedModelError, match="prune_mode is 'magic'; supported: absolute"):
        import_ltp(odd, out)
    (odd / "pytorch_model.bin").unlink()
    with pytest.raises(ModelFormatError, match=r"neither model\.safetensors nor pytorch_model"):
        import_ltp(odd, out)
    torch.save({"token_z": Harmful(marker)}, file)
    with pytest.raises(ModelFormatError, match="not a file of plain tensors"):
        import_top(str(source), file, out)
    file.write_bytes(pickle.dumps(Harmful(marker), protocol=2))
    with pytest.raises(ModelFormatError, match="not a file of plain tensors"):
        import_top(str(source), file, out)
    assert not marker.exists()
    torch.save({"token_z": torch.ones(2, 3)}, file)
    with pytest.raises(ModelFormatError, match="no pruner_z; found: token_z"):
        import_top(str(source), file, out)
    torch.save({"token_z": torch.full((2, 3), 0.5), "pruner_z": torch.ones(2)}, file)
    with pytest.raises(ModelFormatError, match="token_z has values other than 0 and 1"):
        import_top(str(source), file, out)
    torch.save({"token_z": torch.ones(2, 3), "pruner_z": torch.ones(5)}, file)
    with pytest.raises(ModelFormatError, match=r"token_z is \[2, 3\] and pruner_z \[5\]"):
        import_top(str(source), file, out)
    file.write_text("[1, 2")
    with pytest.raises(ModelFormatError, match="not JSON"):
        import_lat(str(source), file, out)
    file.write_text("[1]")
    with pytest.raises(ModelFormatError, match="found 1 lengths"):
        import_lat(str(source), file, out)
    assert not out.exists()
