"""Recipes end to end on tiny models: folders that run, exact resumption, errors that help."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import tokprune_rt
from tokprune_rt.bench.timing import Timing
from tokprune_rt.outputs import dense_macs
from tokprune_rt.policy import find_policy
from tokprune_rt.train import (
    Examples,
    MaskedEncoder,
    PolicyChooser,
    Run,
    Schedule,
    Settings,
    evaluate,
    finetune,
    latency,
    runs,
    train_gate,
    train_ltp,
    train_power_bert,
    train_top,
)
from tokprune_rt.train.budget import Budget, Widths, factor_for
from tokprune_rt.train.data import collate, tokenizer_of
from tokprune_rt.train.gates import SHAPES
from tokprune_rt.train.masked import Pass
from tokprune_rt.train.power import PowerRetention
from tokprune_rt.train.top import TopMasks, ranking_loss

WORDS = ["the", "weather", "was", "film", "test", "numbers", "fox", "dog", "cat", "warm", "mat"]


def examples(count: int, seed: int) -> Examples:
    """Sentences of random words; the class is whether "good" or "bad" is among them."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(count):
        words = list(rng.choice(WORDS, int(rng.integers(3, 14))))
        label = ("good", "bad")[int(rng.integers(2))]
        words[int(rng.integers(len(words)))] = label
        texts.append(" ".join(words))
        labels.append(label)
    return Examples(texts, labels)


TRAIN, DEV = examples(256, 1), examples(96, 2)


class Stop(Exception):
    """Ends a run in the middle."""


def run_of(source: Path | str, out: Path, **changes: Any) -> Run:
    settings = Settings(batch_size=16, save_seconds=0.0)
    quiet = Run(str(source), out, TRAIN, DEV, settings=settings, say=lambda _: None)
    return dataclasses.replace(quiet, **changes)


@pytest.fixture(scope="module")
def dense(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("train") / "dense"
    result = finetune(run_of(tiny("bert"), folder), epochs=6, rate=3e-3)
    assert result.scores["dense"] > 95
    return folder


LTP: dict[str, Any] = {
    "target": 0.6,
    "schedule": Schedule(epochs=3, hard_epochs=2, rate=1e-3, method_rate=0.05),
}


@pytest.fixture(scope="module")
def pruned(dense: Path) -> Path:
    folder = dense.parent / "pruned"
    result = train_ltp(run_of(dense, folder), **LTP)
    assert result.scores["pruned"] > 90
    return folder


def test_a_dense_folder_runs_everywhere(dense: Path) -> None:
    model = tokprune_rt.load(dense)
    assert model.labels == ("bad", "good")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(dense)
    found = [item["label"] for item in model.predict(DEV.texts)]
    assert np.mean([a == b for a, b in zip(found, DEV.labels, strict=True)]) > 0.95
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    assert not list(dense.parent.glob(".dense*"))
    assert len({path.stat().st_mode for path in dense.iterdir()}) == 1  # all as readable


@pytest.fixture(scope="module")
def by_rank(dense: Path) -> Path:
    folder = dense.parent / "by-rank"
    lines: list[str] = []
    result = train_top(
        run_of(dense, folder, say=lines.append),
        target=0.6,
        bins=10,
        schedule=Schedule(epochs=8, hard_epochs=2, rate=1e-3, method_rate=0.2),
    )
    assert result.scores["pruned"] > 90, lines
    return folder


@pytest.fixture(scope="module")
def by_count(dense: Path) -> Path:
    folder = dense.parent / "by-count"
    result = train_power_bert(run_of(dense, folder), **LTP)
    assert result.scores["pruned"] > 90
    return folder


def test_learned_ranks_meet_the_budget(by_rank: Path) -> None:
    found = {row.profile: row for row in evaluate(by_rank, DEV, rounds=1).rows}
    assert 0.5 < found["default"].macs < 0.7
    assert found["default"].score > 90


@pytest.fixture(scope="module", params=SHAPES)
def gated(dense: Path, request: pytest.FixtureRequest) -> Path:
    folder = dense.parent / request.param
    schedule = Schedule(epochs=10, hard_epochs=1, rate=1e-3, method_rate=0.005)
    result = train_gate(run_of(dense, folder), shape=request.param, target=0.7, schedule=schedule)
    assert result.scores["pruned"] > 90
    return folder


@pytest.mark.parametrize("method", ["pruned", "by_rank", "by_count"])
def test_a_budget_is_met(method: str, request: pytest.FixtureRequest) -> None:
    assert assert_counted(request.getfixturevalue(method)) == pytest.approx(0.6, abs=0.06)


def test_gates_meet_a_budget(gated: Path) -> None:
    # The runtime does not ask a gate about a text that can lose no more.
    found = assert_counted(gated, slack=0.01)
    assert found == pytest.approx(0.7, abs=0.1)


def assert_counted(folder: Path, slack: float = 1e-4) -> float:
    """What training counted and scored is what runs."""
    found = {row.profile: row for row in evaluate(folder, DEV, rounds=1).rows}
    policy = find_policy(folder)
    assert policy is not None
    assert found["default"].macs == pytest.approx(policy.provenance["macs"], abs=slack)
    assert found["default"].score == pytest.approx(policy.provenance["metric"]["pruned"], abs=1e-3)
    return found["default"].macs


def test_a_speedup_becomes_multiply_adds(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More speed, less work; what no policy reaches is said."""
    tokens = tokenizer_of(dense).tokenize([" ".join(DEV.texts[i : i + 5]) for i in range(60)])
    seconds = [1.0, 0.9, 0.75, 0.8, 0.5, 0.4]

    def timed(calls: list[Any], *_: float) -> list[Timing]:
        for call in calls:
            call()
        return [Timing(((taken,),)) for taken in seconds]

    monkeypatch.setattr(latency, "alternate", timed)
    with pytest.raises(ValueError, match=r"50 is out of reach.* times as fast") as caught:
        latency.macs_for_speedup(dense, tokens, 50)
    assert str(caught.value).endswith("these texts run 2.50 times as fast")
    with pytest.raises(ValueError, match="speed-up: found 1; allowed: above 1"):
        latency.macs_for_speedup(dense, tokens, 1)
    work = [latency.macs_for_speedup(dense, tokens, speed) for speed in (1.1, 1.3, 1.5, 2, 2.5)]
    assert work[-1] > 0.2 and work[0] < 1 and work == sorted(work, reverse=True)


def a_pass(lengths: list[int], pinned: int) -> Pass:
    """A padded batch whose first ``pinned`` tokens never leave."""
    places = torch.arange(max(lengths))
    real = places < torch.tensor(lengths)[:, None]
    ids = torch.zeros_like(real, dtype=torch.int64)
    run = Pass({}, ids, real, ids, real.clone())
    run.notes["protected"] = real & (places < pinned)
    return run


def test_multiply_adds_are_counted_like_the_runtime_s() -> None:
    widths = Widths(layers=4, hidden=48, intermediate=100)
    lengths = torch.tensor([7, 1, 30])
    assert float(widths.dense(lengths)) == pytest.approx(dense_macs(lengths.numpy(), 4, 48, 100))
    run, masks = a_pass(lengths.tolist(), 2), TopMasks(widths)
    with torch.no_grad():
        masks.gate.fill_(-20.0)
    assert float(masks.expected_macs(run).detach()) == pytest.approx(1, abs=2e-3)
    with torch.no_grad():
        masks.gate.fill_(4.6)
        masks.bit.fill_(0.0)
    assert float(masks.expected_macs(run).detach()) < 0.61
    bits, gates = masks.frozen()
    assert (bits.sum(axis=1) == 10).all() and gates.all()
    assert (masks.frozen(4.0)[0].sum(axis=1) == 4).all()
    retention = PowerRetention(widths, longest=30)
    assert retention.kept() == [30, 30, 30] and retention.kept(2.0) == [15, 15, 15]


def test_a_factor_meets_a_budget() -> None:
    """A smooth curve is met; of steps, the nearest one is taken."""
    assert factor_for(0.3, lambda factor: 1 / (1 + factor)) == pytest.approx(7 / 3, rel=0.02)
    assert factor_for(0.3, lambda factor: 0.25 if factor > 2 else 0.9) > 2


def test_a_budget_pulls_both_ways() -> None:
    """The penalty falls towards the target from either side, and the multiplier follows the excess
    of a step, whatever parts it was taken in."""
    budget = Budget(0.5)
    for work in (0.8, 0.2):
        expected = torch.tensor(work, requires_grad=True)
        budget(expected, 1.0).backward()
        assert expected.grad is not None and (expected.grad > 0) == (work > 0.5)
    budget.after_step()
    assert float(budget.linear) == pytest.approx(0.0, abs=1e-6)
    for steps in (1, 2):
        for _ in range(2):
            budget(torch.tensor(0.8), 1.0)
        budget.after_step()
        assert float(budget.linear) == pytest.approx(0.15 * steps)
    assert budget.state_dict()["linear"] == budget.linear
    # Loose at first, unless a method begins at its target.
    assert float(Budget(0.5)(torch.tensor(1.0), 0.0)) == 0
    assert float(Budget(0.5, warm_up=0)(torch.tensor(1.0), 0.0)) > 1
    with pytest.raises(ValueError, match="target: found 1; allowed: above 0, below 1"):
        Budget(1)


def test_ranking_loss_falls_with_agreement() -> None:
    teacher = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    everyone = torch.ones(1, 4, dtype=torch.bool)
    same, reversed_ = (ranking_loss(s, teacher, everyone) for s in (teacher, -teacher + 0.5))
    assert same < reversed_
    some = torch.tensor([[True, False, True, False]])
    assert ranking_loss(teacher, teacher, some) > 0


def test_learned_thresholds_prune_and_keep_the_score(pruned: Path) -> None:
    policy = find_policy(pruned)
    assert policy is not None
    assert policy.provenance["method"] == "ltp"
    found = {row.profile: row for row in evaluate(pruned, DEV, rounds=1).rows}
    assert found["default"].macs < 0.8 and found["off"].macs == 1
    assert found["default"].score > 90
    assert found["default"].kept[0] == 1 and found["default"].kept[-1] < 0.7
    assert found["off"].macs_padded > 1


@pytest.mark.parametrize("method", ["pruned", "by_rank", "by_count"])
def test_training_and_runtime_decide_alike(method: str, request: pytest.FixtureRequest) -> None:
    assert_alike(request.getfixturevalue(method))


def test_gates_decide_alike(gated: Path) -> None:
    assert_alike(gated)


def test_gates_before_the_first_layer_decide_alike(dense: Path, tmp_path: Path) -> None:
    schedule = Schedule(epochs=5, hard_epochs=1, rate=1e-3, method_rate=0.02)
    result = train_gate(run_of(dense, tmp_path / "out"), target=0.35, schedule=schedule)
    assert result.macs == pytest.approx(0.35, abs=0.06)
    assert_alike(tmp_path / "out")
    (step,) = find_policy(tmp_path / "out").to_dict()["steps"]  # type: ignore[union-attr]
    assert step["layers"] == [0, 1, 2]


def assert_alike(folder: Path) -> None:
    """The same tokens after every layer, the same logits."""
    model = tokprune_rt.load(folder, precision="fp32")
    policy = find_policy(folder)
    assert policy is not None
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoder = MaskedEncoder(theirs)
    tokens = tokenizer_of(folder).tokenize(DEV.texts)
    with torch.inference_mode(), encoder.choosing(PolicyChooser(policy)):
        output, run = encoder.run(collate(tokens, 0, True, torch.device("cpu")))
    ours = model.forward([item.ids for item in tokens], trace=True)
    assert ours.trace is not None
    for layer, alive in enumerate(run.kept):
        for b, row in enumerate(alive.numpy()):
            np.testing.assert_array_equal(np.flatnonzero(row), ours.trace.kept[layer][b])
    assert ours.logits is not None
    np.testing.assert_allclose(output.logits.numpy(), ours.logits, atol=2e-5)


@pytest.mark.parametrize("stop_at", [1, 4])
def test_an_interrupted_run_goes_on_exactly(
    dense: Path, pruned: Path, tmp_path: Path, stop_at: int
) -> None:
    """Interrupted after one epoch of the first stage, and in the second: the same bytes."""
    out = tmp_path / "again"
    heard: list[str] = []

    def say(line: str) -> None:
        heard.append(line)
        if sum("epoch" in item for item in heard) == stop_at:
            raise Stop

    with pytest.raises(Stop):
        train_ltp(run_of(dense, out, say=say), **LTP)
    assert not out.exists()
    with pytest.raises(ValueError, match=r"is of a run with target 0\.6; run with the same"):
        train_ltp(run_of(dense, out), **{**LTP, "target": 0.7})
    lines: list[str] = []
    train_ltp(run_of(dense, out, say=lines.append), **LTP)
    assert any("going on after" in line for line in lines)
    for name in ("model.safetensors", "token_policy.json"):
        assert (out / name).read_bytes() == (pruned / name).read_bytes()


def test_a_run_that_could_not_write_goes_on(
    dense: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages are done; what the method learned is still there."""
    out = tmp_path / "again"

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_model", full)
        with pytest.raises(OSError, match="no space left"):
            train_ltp(run_of(dense, out), **LTP)
    other = Examples(TRAIN.texts[::-1], TRAIN.labels[::-1])
    with pytest.raises(ValueError, match="is of a run with data '"):
        train_ltp(run_of(dense, out, train=other), **LTP)
    lines: list[str] = []
    train_ltp(run_of(dense, out, say=lines.append), **LTP)
    told = [line.split(":")[0] for line in lines]
    stages = ["dense", "ltp-soft", "ltp-hard"]
    # Nothing is fitted anew, least of all on the weights of the dense model.
    assert [name for name in told if name in (*stages, "multiply-adds")] == stages
    assert not any("epoch" in name for name in told)
    for name in ("model.safetensors", "token_policy.json"):
        assert (out / name).read_bytes() == (pruned / name).read_bytes()


def test_a_seed_decides_everything(tiny: Any, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        settings = Settings(batch_size=64, seed=seed)
        finetune(run_of(tiny("bert"), tmp_path / name, settings=settings), epochs=1)
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = weights("a", 1)
    assert weights("b", 2) != first
    assert weights("c", 1) == first


def test_models_and_labels_that_do_not_fit(tiny: Any, dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="run `tokprune finetune` first"):
        train_ltp(run_of(tiny("bert"), out))
    other = Examples(DEV.texts, ["ugly"] * len(DEV))
    with pytest.raises(
        ValueError, match="dev examples: unknown labels 'ugly'; known: 'bad', 'good'"
    ):
        train_ltp(run_of(dense, out, dev=other))
    with pytest.raises(ValueError, match="has 2 outputs, which is no regression"):
        train_ltp(run_of(dense, out, regression=True))
    with pytest.raises(ValueError, match="a regression needs numbers as labels"):
        finetune(run_of(tiny("bert"), out, regression=True))
    with pytest.raises(ValueError, match="unknown metric 'bleu'; known: accuracy"):
        finetune(run_of(tiny("bert"), out, metric="bleu"))
    with pytest.raises(ValueError, match="needs 2 labels or more"):
        finetune(run_of(tiny("bert"), out, train=Examples(["a"], ["x"])))
    names = [f"{number:03}" for number in range(64)]
    with pytest.raises(ValueError, match=r"64 different labels in 64 examples, as '000'"):
        finetune(run_of(tiny("bert"), out, train=Examples(names, names)))
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        finetune(run_of(tiny("bert"), dense))
    with pytest.raises(ValueError, match=r"the loss became nan.*try a learning rate below"):
        finetune(run_of(tiny("bert"), out), rate=1e30)
    assert not out.exists()


def test_a_regression_learns_numbers(tiny: Any, tmp_path: Path) -> None:
    def numbers(data: Examples) -> Examples:
        return Examples(data.texts, [str(0.5 + (label == "good")) for label in data.labels])

    run = run_of(
        tiny("distilbert"), tmp_path / "r", train=numbers(TRAIN), dev=numbers(DEV), regression=True
    )
    assert finetune(run, epochs=6, rate=3e-3).scores["dense"] > 60
    assert evaluate(tmp_path / "r", numbers(DEV), rounds=1).rows[0].score > 60
