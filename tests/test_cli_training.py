"""The commands that train, evaluate and import, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import MINILM, run
from test_train import DEV, TRAIN

import tokprune_rt
from tokprune_rt.policy import weights_digest
from tokprune_rt.train import loop
from tokprune_rt.train.runs import checkpoints_of
from tokprune_rt.train.stage import prefers_bf16


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
        ("top", ["--method-rate", "0.2", "--epochs", "2", "--bins", "5", "--bf16"]),
    ):
        folder = tmp_path / method
        fixed = [*options, "--rate", "0.001", "--hard-epochs", "1", *columns(tables)]
        result = run("train", method, dense, folder, *fixed)
        assert f"{method}-hard, epoch 1 of 1: dev" in result.stderr
        assert tokprune_rt.load(folder).policy_hash != "off"
        weights = load_file(folder / "model.safetensors").values()
        assert {tensor.dtype for tensor in weights} == {torch.float32}
    data = ["--data", tables["dev"], "--text", "sentence", "--label", "kind"]
    files = ["--json", tmp_path / "e.json", "--plot", tmp_path / "e.png"]
    precisions = ["--precision", "fp32", "--precision", "int8"]
    shown = run("evaluate", tmp_path / "ltp", *data, *files, *precisions).output
    assert "accuracy" in shown and "default" in shown and "int8" in shown
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    assert [row["profile"] for row in rows] == ["off", "default"] * 2
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    preset = ["--preset", "quantile", "--set", "q=0.2"]
    assert "default" in run("evaluate", dense, *data, *preset).output


def test_errors_are_one_line(dense: Path, tables: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    bad = run("finetune", dense, out, *columns(tables)[:-4], code=2).stderr
    assert "no column 'label'" in bad and bad.count("\n") == 1
    bad = run("finetune", dense, out, *columns(tables), "--device", "gpu", code=2).stderr
    assert "--device gpu" in bad and bad.count("\n") == 1
    bad = run("finetune", dense, out, *columns(tables), "--threads", "-1", code=2).stderr
    assert bad == "error: --threads: found -1; allowed: 1 or more\n"
    bad = run("train", "ltp", "all-MiniLM-L6-v2", out, *columns(tables), code=2).stderr
    assert "run `tokprune finetune` first" in bad
    bad = run("train", "ltp", dense, out, *columns(tables), "--bins", "5", code=2).stderr
    assert "--bins is an option of `train top`, not of `train ltp`" in bad
    assert not out.exists()


def test_options_from_a_file(
    dense: Path, tables: dict[str, Path], tmp_path: Path, tiny: Any
) -> None:
    """By their long names; the command line wins."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"train: {tables['train']}\ndev: {tables['dev']}\ntext: sentence\nlabel: kind\n"
        "batch-size: 32\nrate: 1e-3\nepochs: 7\nregression: false\n"
    )
    result = run("finetune", tiny("bert"), tmp_path / "a", "--config", path, "--epochs", "1")
    assert "finetune, epoch 1 of 1: dev" in result.stderr
    given = ["--rate", "0.001", "--batch-size", "32", *columns(tables)[:-2], "--epochs", "1"]
    run("finetune", tiny("bert"), tmp_path / "b", *given)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    in_float32 = "fp32: true\nepochs: 1\ntext: sentence\nlabel: kind\n"
    path.write_text(f"train: {tables['train']}\ndev: {tables['dev']}\n{in_float32}")
    shown = run("finetune", tiny("bert"), tmp_path / "d", "--config", path).stderr
    assert "bfloat16" not in shown
    path.write_text(f"texts: {tmp_path / 'none.txt'}\npreset: quantile\nset: [q=0.2]\n")
    assert "none.txt" in run("distil", MINILM, tmp_path / "e", "--config", path, code=2).stderr
    path.write_text("set: [[1]]")
    bad = run("distil", MINILM, tmp_path / "e", "--config", path, code=2).stderr
    assert "set: expected a text or a number, or a list of them, found [[1]]" in bad
    for content, message in (
        ("speed: 3", "unknown option 'speed'; known: train, dev, text"),
        ("batch_size: 3", "unknown option 'batch_size'; known: train"),
        ("fp32: 1", "fp32: expected true or false, found 1"),
        ("epochs: [1]", "epochs: expected a text or a number, found [1]"),
        ("epochs: true", "epochs: expected a text or a number, found True"),
        ("epochs: many", ": epochs: "),
        ("epochs: 0", ": epochs: "),
        ("regression: 1", "regression: expected true or false, found 1"),
        ("- epochs", "expected options by name, found list"),
        ("a: b: c", "not YAML"),
    ):
        path.write_text(content)
        bad = run("finetune", dense, tmp_path / "c", "--config", path, code=2).stderr
        assert message in bad and str(path) in bad


def test_an_interruption_says_how_to_go_on(
    dense: Path, tables: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["train", "top", dense, out, *columns(tables), "--epochs", "1", "--hard-epochs", "1"]
    full = loop.Training.run_stage

    def before(*_: object) -> float:
        raise KeyboardInterrupt

    def after(self: loop.Training, stage: loop.Stage) -> float:
        full(self, stage)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "run_stage", before)
    said = run(*command, code=130).stderr
    assert "interrupted before the first checkpoint; the same command begins anew" in said
    monkeypatch.setattr(loop.Training, "run_stage", after)
    said = run(*command, code=130).stderr
    checkpoint = tmp_path / ".out.training" / "checkpoint.pt"
    assert f"interrupted; the same command goes on from {checkpoint}" in said
    assert checkpoint.exists()
    monkeypatch.setattr(loop.Training, "run_stage", full)
    bad = run(*command, "--target-macs", "0.3", "--method-rate", "0.1", code=2).stderr
    assert "is of a run with --target-macs 0.5, --method-rate 0.05; run with the same" in bad
    mine, other = ("--bf16", "--fp32") if prefers_bf16("cpu") else ("--fp32", "--bf16")
    bad = run(*command, other, code=2).stderr
    assert f"is of a run with {mine}; run with the same" in bad
    weights = dense / "model.safetensors"
    before_it, digest = weights.read_bytes(), weights_digest(dense)
    save_file({k: v + 1 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    bad = run(*command, code=2).stderr
    assert f"is of a run with MODEL's weights {str(digest)[:12]}; run with the same" in bad
    weights.write_bytes(before_it)
    run(*command)
    assert not checkpoints_of(out).exists()


def test_a_label_error_names_file_and_line(
    dense: Path, tables: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "odd.tsv"
    path.write_text("sentence\tkind\na dog\tgood\na cat\tugly\n")
    options = ["--train", path, "--dev", tables["dev"], "--text", "sentence", "--label", "kind"]
    bad = run("train", "ltp", dense, tmp_path / "out", *options, code=2).stderr
    assert f"unknown labels 'ugly' ({path}:3); known: 'bad', 'good'" in bad
    numbers = [*options, "--regression"]
    bad = run("finetune", dense, tmp_path / "out", *numbers, code=2).stderr
    assert f"needs numbers as labels, found 'good' ({path}:2)" in bad


def test_tagging_and_answering(tiny: Any, tmp_path: Path) -> None:
    """From files, through training, to the table."""
    tagged = "ada\tB-PER\nwas\tO\ngood\tO\n\n" * 20 + "the\tO\n" * 70
    (tmp_path / "t.conll").write_text(tagged)
    context, answers = "ada was good", [{"text": "ada", "answer_start": 0}]
    qas = [{"id": str(i), "question": "who was it", "answers": answers} for i in range(20)]
    content = {"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}
    (tmp_path / "q.json").write_text(json.dumps(content))
    for name, shown in (("t.conll", "entity-f1"), ("q.json", "lost")):
        files = ["--train", tmp_path / name, "--dev", tmp_path / name, "--epochs", "1"]
        dense, pruned = tmp_path / f"{name}-dense", tmp_path / f"{name}-top"
        run("finetune", tiny("bert"), dense, *files)
        run("train", "top", dense, pruned, *files, "--hard-epochs", "1", "--bins", "4")
        found = run("evaluate", pruned, "--data", tmp_path / name)
        assert shown in found.output and "default" in found.output
        assert ("8 words of 1 sentences" in found.stderr) == (name == "t.conll")


def test_import(tiny: Any, tmp_path: Path) -> None:
    model = tiny("bert", "sequence-classification")
    torch.save({"token_z": torch.ones(1, 3), "pruner_z": torch.ones(1)}, tmp_path / "zs.pt")
    run("import", "top", model, tmp_path / "zs.pt", tmp_path / "top")
    layers = tokprune_rt.load(model).config.layers
    (tmp_path / "l.json").write_text(json.dumps([9] * layers))
    run("import", "lat", model, tmp_path / "l.json", tmp_path / "lat")
    assert tokprune_rt.load(tmp_path / "lat").policy is not None
    assert "an LTP checkpoint has 'ltp'" in run("import", "ltp", model, "x", code=2).stderr
