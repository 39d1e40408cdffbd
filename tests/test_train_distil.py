"""Self-distillation end to end: the folder it writes, exact resumption, errors that help."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_cli import run as command
from test_train import Stop, examples
from test_train_masked import padded

import tokprune_rt
from tokprune_rt.policy import find_policy, preset
from tokprune_rt.train import DistilRun, DistilSchedule, Settings, distil, loop
from tokprune_rt.train.dense_goal import DenseTeacher, TowardsDense
from tokprune_rt.train.embedding import Embedder
from tokprune_rt.train.merging import Reducer, means
from tokprune_rt.train.runs import checkpoints_of

MERGING = preset(
    "tome",
    layers=3,
    ratio=0.55,
    metric="hidden",
    protect_first=True,
    profiles={"light": {"steps": [{"ratio": 0.9}]}},
)
SCHEDULE = DistilSchedule(epochs=2, rate=2e-4)


def texts_of(count: int, seed: int) -> list[str]:
    """Long enough to merge."""
    short = examples(3 * count, seed).texts
    return [" ".join(map(str, short[i : i + 3])) for i in range(0, 3 * count, 3)]


TEXTS = texts_of(160, 1)


@pytest.fixture(scope="module")
def source(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder with a Normalize module."""
    folder = tmp_path_factory.mktemp("distil") / "source"
    tokprune_rt.SentenceTransformer(tiny("bert")).save_pretrained(folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("of the weights before")
    return folder


def run_of(source: Path, out: Path, **changes: Any) -> DistilRun:
    settings = Settings(batch_size=16, save_seconds=0.0)
    quiet = DistilRun(
        str(source), out, TEXTS, policy=MERGING, settings=settings, say=lambda _: None
    )
    return dataclasses.replace(quiet, **changes)


@pytest.fixture(scope="module")
def distilled(source: Path) -> Path:
    torch.set_num_threads(1)  # on which sums depend
    out = source.parent / "distilled"
    rows = {row.profile: row for row in distil(run_of(source, out), SCHEDULE).rows}
    assert list(rows) == ["off", "default", "light"]
    assert rows["default"].after.value > rows["default"].before.value
    assert rows["light"].after.value > 0.98
    assert rows["default"].macs < rows["light"].macs < rows["off"].macs == 1
    assert rows["off"].after.value > 0.98
    return out


def test_the_folder_runs_pruned_and_elsewhere_dense(source: Path, distilled: Path) -> None:
    model, before = tokprune_rt.load(distilled), tokprune_rt.load(source)
    fresh = texts_of(20, 2)
    index = before.encode(fresh, normalize_embeddings=True)
    found = {
        profile: model.encode(fresh, normalize_embeddings=True, profile=profile)
        for profile in (None, "light", "off")
    }
    untrained = tokprune_rt.load(source, policy=MERGING).encode(fresh, normalize_embeddings=True)
    assert (found[None] * index).sum(axis=1).mean() > (untrained * index).sum(axis=1).mean()
    assert not np.array_equal(found[None], found["light"])
    sentence = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(distilled), device="cpu"
    )
    theirs = sentence.encode(fresh, normalize_embeddings=True)
    np.testing.assert_allclose(theirs, found["off"], atol=1e-5)
    assert not (distilled / "onnx").exists()
    files = sorted(path.name for path in distilled.iterdir())
    assert "token_policy.json" in files and "modules.json" in files
    assert not list(distilled.parent.glob(".distilled*"))


def test_embeddings_stay(source: Path, distilled: Path) -> None:
    old, new = (transformers.AutoModel.from_pretrained(f) for f in (source, distilled))
    assert torch.equal(old.get_input_embeddings().weight, new.get_input_embeddings().weight)
    moved = [not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True)]
    assert any(moved)


def test_provenance_says_what_was_reached(distilled: Path) -> None:
    policy = find_policy(distilled)
    assert policy is not None
    told = policy.provenance
    assert told["method"] == "distil" and told["texts"] == 144 and told["held_out"] == 16
    rows = {row["profile"]: row for row in told["rows"]}
    assert rows["default"]["before"]["low"] <= rows["default"]["before"]["value"]
    assert rows["default"]["after"]["value"] > rows["default"]["before"]["value"]


def assert_trains_what_runs(folder: Path, source: Any) -> None:
    model = tokprune_rt.load(folder, policy=source, precision="fp32")
    assert model.policy is not None
    embedder = Embedder(folder)
    embedder.model.eval()
    ids = [item.ids.tolist() for item in model.tokenizer.tokenize(TEXTS[:8])]
    inputs = padded(ids)
    for profile in (None, "light"):
        with torch.inference_mode(), embedder.choosing(Reducer(model.policy, profile)):
            output, _ = embedder.run(inputs)
        found = output.logits
        if model.setup.normalize:
            found = torch.nn.functional.normalize(found, dim=-1)
        expected = model.forward(ids, profile=profile).pooled
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_training_sees_the_runtime_s_vectors(distilled: Path) -> None:
    assert_trains_what_runs(distilled, "auto")


def test_with_two_poolings_and_dense_modules(tiny: Any, tmp_path: Path) -> None:
    """They stay as they are, and the written folder has them."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    modules = [
        Transformer(str(tiny("mpnet"))),
        Pooling(64, pooling_mode=["cls", "mean"]),
        Dense(128, 48, activation_function=torch.nn.Tanh()),
        Dense(48, 24, bias=False, activation_function=torch.nn.GELU()),
    ]
    folder, out = tmp_path / "model", tmp_path / "out"
    sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    assert_trains_what_runs(folder, MERGING)
    distil(run_of(folder, out, texts=TEXTS[:40]), dataclasses.replace(SCHEDULE, epochs=1))
    assert_trains_what_runs(out, "auto")
    dense = [load_file(f / "2_Dense" / "model.safetensors") for f in (folder, out)]
    assert torch.equal(dense[0]["linear.weight"], dense[1]["linear.weight"])


def test_an_interrupted_run_ends_with_the_same_bytes(
    source: Path, distilled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = source.parent / "resumed"
    full = loop.Training._step
    taken = 0

    def until(self: Any, *args: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == 13:  # in the second epoch
            raise Stop
        full(self, *args)

    torch.set_num_threads(1)
    monkeypatch.setattr(loop.Training, "_step", until)
    with pytest.raises(Stop):
        distil(run_of(source, out), SCHEDULE)
    assert checkpoints_of(out).exists() and not out.exists()
    monkeypatch.setattr(loop.Training, "_step", full)
    lines: list[str] = []
    with pytest.raises(ValueError, match=r"is of a run with rate 0\.0002"):
        distil(run_of(source, out), dataclasses.replace(SCHEDULE, rate=1e-3))
    distil(run_of(source, out, say=lines.append), SCHEDULE)
    assert "distil: going on after 12 steps" in lines
    for name in ("model.safetensors", "token_policy.json"):
        assert (out / name).read_bytes() == (distilled / name).read_bytes()


def test_what_is_refused(source: Path, tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for changes, message in (
        ({"source": str(tiny("bert", "sequence-classification"))}, "no embeddings"),
        ({"texts": TEXTS[:5]}, "found 5 texts; distillation needs 20"),
        ({"policy": "off"}, 'policy: found "off"'),
        ({"profiles": ["heavy"]}, "unknown profile 'heavy'"),
        ({"policy": preset("quantile", layers=3, q=0.3, action="restore")}, "action 'restore'"),
        ({"policy": "auto", "target": 1.5}, "target: found 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(dataclasses.replace(run_of(source, out), **changes), SCHEDULE)
    assert not out.exists()


def test_the_loss() -> None:
    goal = TowardsDense(ranking=0.5, temperature=0.05, rows=0.0)
    dense = torch.nn.functional.normalize(torch.randn(6, 8, generator=torch.manual_seed(0)), dim=-1)
    assert float(goal.loss(3 * dense, dense)) == pytest.approx(0, abs=1e-6)
    others = dense.roll(1, dims=0)
    assert float(goal.loss(others, dense)) > float(goal.loss(dense + 0.1 * others, dense)) > 0
    assert float(goal.loss(dense[:1], dense[:1])) == pytest.approx(0, abs=1e-6)


def test_rows_aim_at_the_means_of_their_tokens(source: Path) -> None:
    """Whose size-weighted mean is the dense vector."""
    embedder, teacher = Embedder(source), DenseTeacher(Embedder(source), "cpu")
    policy = tokprune_rt.load(source, policy=MERGING).policy
    assert policy is not None
    ids = torch.arange(10, 34).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    with torch.inference_mode(), embedder.choosing(Reducer(policy)):
        _, run = embedder.run({"input_ids": ids, "attention_mask": mask})
    dense, states = teacher.look(run)
    wanted = means(run, states)
    assert wanted.shape[1] < ids.shape[1]
    for index, owner in enumerate(run.owner):
        for row in range(int(run.alive[index].sum())):
            expected = states[index][owner == row]
            assert len(expected) == run.size[index, row]
            torch.testing.assert_close(wanted[index, row], expected.mean(dim=0))
    total = (wanted * run.size[..., None]).sum(dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(total, dim=-1), dense)


def test_the_command(source: Path, tmp_path: Path) -> None:
    """Without a policy it searches one; steps bound the work."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    out = tmp_path / "half"
    options = ["--column", "body", "--target-macs", "0.8", "--steps", "3", "--batch-size", "8"]
    shown = command("distil", source, out, "--texts", path, *options)
    assert "searching where to merge for 80% of the multiply-adds" in shown.stderr
    assert "24 texts to learn from" in shown.stderr
    assert "5th pct. before" in shown.output and "light" in shown.output
    model = tokprune_rt.load(out)
    assert model.profiles == ["off", "light"] and model.policy is not None
    rows = {row["profile"]: row["macs"] for row in model.policy.provenance["rows"]}
    assert 0.6 < rows["default"] < 0.85
    bad = command("distil", source, tmp_path / "x", "--texts", path, code=2).stderr
    assert "no field 'text'" in bad or "'text'" in bad
