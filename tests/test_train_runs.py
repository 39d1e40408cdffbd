"""What keeps training runs apart: the model they began with, their policy, and other processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BuildModel
from test_train import DEV, TRAIN, Stop, run_of

import tokprune_rt
from tokprune_rt.errors import PolicyError
from tokprune_rt.policy import preset
from tokprune_rt.train import Settings, finetune, runs, train_ltp
from tokprune_rt.train.budget import Budget
from tokprune_rt.train.folders import finetuned_model
from tokprune_rt.train.hard import PolicyChooser
from tokprune_rt.train.latency import ratio_policy
from tokprune_rt.train.leaving import FROM_FIRST
from tokprune_rt.train.merging import executing
from tokprune_rt.train.tasks import text_task

POLICY = ratio_policy(3, 0.5)


@pytest.fixture
def source(tiny: BuildModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("bert", "sequence-classification"), tmp_path / "source"))


def interrupted(run: Any, recipe: Any = finetune, **options: Any) -> None:
    """A run that ends after its first epoch, and a checkpoint."""

    def say(line: str) -> None:
        if "epoch 1" in line:
            raise Stop

    with pytest.raises(Stop):
        recipe(run_of(run.source, run.out, say=say), **options)


def test_a_policy_must_fit_before_anything_is_learned(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = ratio_policy(12, 0.5)
    with pytest.raises(PolicyError, match=r"layers: found 12; allowed: 3"):
        finetune(run_of(source, out), policy=other)
    unprotected = POLICY | {"protect": {"first": False}}
    with pytest.raises(PolicyError, match="first"):
        finetune(run_of(source, out), policy=unprotected)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_an_embedding_model_pools_is_of_no_concern_to_its_new_head(
    tiny: BuildModel, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny("bert"), tmp_path / "source"))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": p, "type": f"sentence_transformers.models.{kind}"} for p, kind in kinds]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "1_Pooling").mkdir()
    last = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(last))
    finetune(run_of(source, tmp_path / "out"), epochs=1, policy=POLICY)
    assert tokprune_rt.load(tmp_path / "out").policy is not None


def test_a_run_goes_on_with_the_policy_that_it_began_with(source: Path, tmp_path: Path) -> None:
    run = run_of(source, tmp_path / "out")
    interrupted(run, epochs=2, policy=POLICY)
    with pytest.raises(ValueError, match=r"is of a run with policy '[0-9a-f]{64}'"):
        finetune(run, epochs=2)
    finetune(run, epochs=2, policy=POLICY)


def test_a_run_goes_on_with_the_model_that_it_began_with(
    source: Path, tiny: BuildModel, tmp_path: Path
) -> None:
    run = run_of(source, tmp_path / "out")
    interrupted(run, epochs=2)
    shutil.copy(tiny("bert", "token-classification") / "model.safetensors", source)
    with pytest.raises(ValueError, match=r"is of a run with weights '[0-9a-f]{64}'"):
        finetune(run, epochs=2)


def test_a_measured_target_is_told_by_what_was_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "macs_for_speedup", lambda *given, **_: 1 / given[2])
    dense = finetune(run_of(source, tmp_path / "dense"), epochs=1).folder
    run = run_of(dense, tmp_path / "out")
    interrupted(run, train_ltp, speedup=1.5)
    with pytest.raises(ValueError, match=r"is of a run with speedup 1\.5;"):
        train_ltp(run, speedup=2.0)
    with pytest.raises(ValueError, match=r"is of a run with speedup 1\.5;"):
        train_ltp(run, target=0.5)
    threads = torch.get_num_threads()
    monkeypatch.setattr(runs, "macs_for_speedup", lambda *_, **__: 0.7)
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ValueError, match=rf"is of a run with threads {threads};"):
            train_ltp(run, speedup=1.5)
    finally:
        torch.set_num_threads(threads)
    other = run_of(dense, tmp_path / "other")
    interrupted(other, train_ltp, target=0.5)
    with pytest.raises(ValueError, match=r"is of a run with target 0\.5;"):
        train_ltp(other, speedup=1.5)
    monkeypatch.setattr(runs, "macs_for_speedup", lambda *given, **_: 1 / given[2])
    policy = tokprune_rt.load(train_ltp(run, speedup=1.5).folder).policy
    assert policy is not None and policy.provenance["speedup"] == 1.5


def test_one_process_makes_a_folder(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    holding = (
        "import sys; from pathlib import Path; from tokprune_rt.files import only_process\n"
        "with only_process(Path(sys.argv[1]), Path('out')): print('in', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / ".out.training")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        for recipe in (finetune, train_ltp):
            with pytest.raises(BlockingIOError, match=r"another process is working on .*out"):
                recipe(run_of(source, out))  # type: ignore[operator]
        process.communicate(b"\n")
    finetune(run_of(source, out), epochs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_weights_learn_under_merging_as_well(source: Path, tmp_path: Path) -> None:
    policy = preset("tome", layers=3, ratio=0.8)
    _, chooser = executing(
        finetuned_model(source), tokprune_rt.policy.parse_policy(policy), FROM_FIRST
    )
    assert not isinstance(chooser, PolicyChooser)
    out = tmp_path / "out"
    result = finetune(run_of(source, out), epochs=2, rate=3e-3, policy=policy)
    model = tokprune_rt.load(out, precision="fp32")
    found = np.array([item["label"] for item in model.predict(DEV.texts)])
    assert 100 * np.mean(found == np.array(DEV.labels)) == pytest.approx(result.scores["pruned"])
    assert result.scores["pruned"] > 60


def test_a_step_in_parts_moves_the_multiplier_like_a_whole_one() -> None:
    whole, parts = Budget(0.5, warm_up=0.0), Budget(0.5, warm_up=0.0)
    whole(torch.tensor(0.5 + 0.4 / 5), 1.0, 20)
    for work, texts in ((0.9, 4), (0.5, 16)):
        parts(torch.tensor(work), 1.0, texts)
    for budget in (whole, parts):
        budget.after_step()
    torch.testing.assert_close(whole.linear, parts.linear)
    assert float(whole.linear) > 0


def test_a_run_on_a_cpu_leaves_accelerators_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise RuntimeError("an accelerator was asked")

    monkeypatch.setattr(torch.cuda, "get_rng_state_all", refuse)
    finetune(run_of(source, tmp_path / "out", settings=Settings(batch_size=64)), epochs=1)


@pytest.mark.parametrize(
    ("labels", "ordered"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["1", "01", "001", "0001", "00001"], ("00001", "0001", "001", "01", "1")),
        (["--5", "3"], ("--5", "3")),
        (["\u00b2", "1"], ("1", "\u00b2")),
    ],
)
def test_classes_have_one_order(labels: list[str], ordered: tuple[str, ...]) -> None:
    assert text_task(labels, False, None).labels == ordered
    assert text_task(labels[::-1], False, None).labels == ordered
    assert len(TRAIN) == 256
