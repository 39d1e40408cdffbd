"""Altered copies of training texts, and what the second stage learns from them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_train import TRAIN, run_of

from tokprune_rt.train import Examples, Schedule, finetune, train_ltp
from tokprune_rt.train.altering import altered
from tokprune_rt.train.learning import distilled
from tokprune_rt.train.loop import Training
from tokprune_rt.train.tasks import RankTask, TextTask

WORDS = [f"word{i}" for i in range(400)]
LONG = [" ".join(WORDS[start : start + 40]) for start in range(0, 400, 40)]


def test_some_words_go_and_some_are_of_other_texts() -> None:
    found = altered(LONG, 20, 0)
    assert len(found) == 200
    gone = came = 0
    for text, own in zip(found, LONG * 20, strict=True):
        assert isinstance(text, str) and text != own
        before, after = Counter(own.split()), Counter(text.split())
        gone += (before - after).total()
        came += (after - before).total()
        assert set(after) <= set(WORDS)
    assert 0.15 < gone / (200 * 40) < 0.25  # a tenth to three tenths
    assert 0.4 < came / gone < 0.6


def test_copies_depend_on_nothing_but_the_seed() -> None:
    assert altered(LONG, 2, 3) == altered(LONG, 2, 3)
    assert altered(LONG, 2, 3) != altered(LONG, 2, 4)
    assert altered(LONG, 0, 3) == []


def test_the_second_text_of_a_pair_may_become_like_the_first() -> None:
    pairs = list(zip(LONG[:5], LONG[5:], strict=True))
    alike = kept = foreign = 0
    for found, pair in zip(altered(pairs, 100, 0), pairs * 100, strict=True):
        assert isinstance(found, tuple)
        words = [set(text.split()) for text in found]
        alike += len(words[0] & words[1]) > 15
        kept += sum(text in pair for text in found)
        foreign += found[0] == pair[0] and not words[1] & {w for t in pair for w in t.split()}
    assert 80 < alike < 180 and 150 < kept < 450 and 50 < foreign < 130


@given(st.lists(st.one_of(st.text(), st.tuples(st.text(), st.text())), max_size=8), st.integers(0))
def test_whatever_the_texts(texts: list[Any], seed: int) -> None:
    """Texts stay texts and pairs pairs, also without a space or a word; nothing becomes empty."""
    found = altered(texts, 2, seed)
    for one, own in zip(found, texts * 2, strict=True):
        assert isinstance(one, str) == isinstance(own, str)
        if isinstance(own, str) and own.strip():
            assert one


@pytest.mark.parametrize("task", [TextTask((), "spearman"), RankTask((), "map")])
def test_numbers_teach_labelled_texts_and_answers_the_others(task: TextTask) -> None:
    logits = torch.tensor([[0.3], [0.9], [-2.0]])
    targets, answers = torch.tensor([1.0, 0.0, 7.0]), torch.tensor([[9.0], [9.0], [-1.0]])
    found = distilled(task, logits, targets, answers, torch.tensor([True, True, False]))
    wanted = (2 * task.loss(logits[:2], targets[:2]) + 1.0) / 3
    torch.testing.assert_close(found, wanted)


def test_classes_are_always_the_teacher_s() -> None:
    task = TextTask(("a", "b"), "accuracy")
    logits, answers = torch.randn(3, 2), torch.randn(3, 2)
    found = distilled(task, logits, torch.tensor([0, 1, 0]), answers, torch.ones(3) > 0)
    torch.testing.assert_close(found, task.distance(logits, answers))


def test_the_second_stage_learns_from_copies(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times the steps, of examples with their own lengths, and the same twice."""
    few = Examples(TRAIN.texts[:32], TRAIN.labels[:32])
    numbers = Examples(few.texts, [str(len(label)) for label in few.labels])
    for name, data, regression in (("classes", few, False), ("numbers", numbers, True)):
        dense, seen = tmp_path / name, []
        changes: dict[str, Any] = {"train": data, "dev": data, "regression": regression}
        finetune(run_of(tiny("bert"), dense, **changes), epochs=1)
        step = Training._loss

        def watched(self: Any, stage: Any, places: Any, done: float, step: Any = step) -> Any:
            seen.append((stage.name, max(places)))  # noqa: B023
            return step(self, stage, places, done)

        monkeypatch.setattr(Training, "_loss", watched)
        schedule = Schedule(epochs=1, hard_epochs=1, copies=2)
        written = []
        for out in ("one", "two"):
            run = run_of(dense, tmp_path / f"{name}-{out}", **changes)
            train_ltp(run, target=0.7, schedule=schedule)
            written.append((run.out / "model.safetensors").read_bytes())
        monkeypatch.undo()
        assert written[0] == written[1]
        soft, hard = ([top for stage, top in seen if stage == f"ltp-{s}"] for s in ("soft", "hard"))
        assert len(hard) == 3 * len(soft) and max(soft) < 32 <= max(hard) < 96
        without = run_of(dense, tmp_path / f"{name}-none", **changes)
        train_ltp(without, target=0.7, schedule=dataclasses.replace(schedule, copies=0))
