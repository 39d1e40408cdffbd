"""The commands that train, evaluate and import, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import run
from test_train import DEV, TRAIN

import tokprune_rt


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    for name, data in (("train", TRAIN), ("dev", DEV)):
        rows = zip(data.texts, data.labels, strict=True)
        lines = ["sentence\tkind", *(f"{text}\t{label}" for text, label in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return {name: folder / f"{name}.tsv" for name in ("train", "dev")}


def columns(tables: dict[str, Path]) -> list[object]:
    files = ["--train", tables["train"], "--dev", tables["dev"]]
    return [*files, "--text", "sentence", "--label", "kind", "--batch-size", "16"]


@pytest.fixture(scope="module")
def dense(tiny: Any, tables: dict[str, Path]) -> Path:
    folder = tables["dev"].parent / "dense"
    options = ["--epochs", "4", "--rate", "0.003", *columns(tables)]
    result = run("finetune", tiny("bert"), folder, *options)
    assert f"wrote {folder}; dev: dense" in result.output.replace("\n", " ")
    assert "finetune, epoch 4 of 4: dev" in result.stderr
    return folder


def test_train_and_evaluate(dense: Path, tables: dict[str, Path], tmp_path: Path) -> None:
    for method, options in (
        ("ltp", ["--method-rate", "0.05", "--epochs", "2"]),
        ("top", ["--target-macs", "0.7", "--method-rate", "0.2", "--epochs", "2", "--bins", "5"]),
    ):
        folder = tmp_path / method
        fixed = [*options, "--rate", "0.001", "--hard-epochs", "1", *columns(tables)]
        result = run("train", method, dense, folder, *fixed)
        assert f"{method}-hard, epoch 1 of 1: dev" in result.stderr
        assert tokprune_rt.load(folder).policy_hash != "off"
    data = ["--data", tables["dev"], "--text", "sentence", "--label", "kind"]
    files = ["--json", tmp_path / "e.json", "--plot", tmp_path / "e.png"]
    precisions = ["--precision", "fp32", "--precision", "int8"]
    shown = run("evaluate", tmp_path / "ltp", *data, *files, *precisions).output
    assert "accuracy" in shown and "policy" in shown and "int8" in shown
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    assert [row["profile"] for row in rows] == ["off", "policy"] * 2
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    preset = ["--preset", "quantile", "--set", "q=0.2"]
    assert "policy" in run("evaluate", dense, *data, *preset).output


def test_errors_are_one_line(dense: Path, tables: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    bad = run("finetune", dense, out, *columns(tables)[:-4], code=2).stderr
    assert "no column 'label'" in bad and bad.count("\n") == 1
    bad = run("finetune", dense, out, *columns(tables), "--device", "gpu", code=2).stderr
    assert "--device gpu" in bad and bad.count("\n") == 1
    bad = run("train", "ltp", "all-MiniLM-L6-v2", out, *columns(tables), code=2).stderr
    assert "run `tokprune finetune` first" in bad
    bad = run("train", "ltp", dense, out, *columns(tables), "--bins", "5", code=2).stderr
    assert "--bins is not an option of `train ltp`" in bad
    assert not out.exists()


def test_import(tiny: Any, tmp_path: Path) -> None:
    model = tiny("bert", "sequence-classification")
    torch.save({"token_z": torch.ones(1, 3), "pruner_z": torch.ones(1)}, tmp_path / "zs.pt")
    run("import", "top", model, tmp_path / "zs.pt", tmp_path / "top")
    layers = tokprune_rt.load(model).config.layers
    (tmp_path / "l.json").write_text(json.dumps([9] * layers))
    run("import", "lat", model, tmp_path / "l.json", tmp_path / "lat")
    assert tokprune_rt.load(tmp_path / "lat").policy is not None
    assert "an LTP checkpoint has 'ltp'" in run("import", "ltp", model, "x", code=2).stderr
