"""Tagging and question answering: targets, scores, and pruned training that the engine repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_train import WORDS, run_of

import tokprune_rt
from tokprune_rt.policy import find_policy
from tokprune_rt.train import (
    Data,
    Examples,
    MaskedEncoder,
    PolicyChooser,
    Question,
    Questions,
    Run,
    Schedule,
    Sentences,
    Settings,
    evaluate,
    finetune,
    squad,
    train_gate,
    train_ltp,
    train_top,
)
from tokprune_rt.train.budget import Widths
from tokprune_rt.train.data import collate, tokenizer_of
from tokprune_rt.train.folders import existing_task, finetuned_model
from tokprune_rt.train.gates import Gates
from tokprune_rt.train.leaving import leaving_of
from tokprune_rt.train.ltp import LtpThresholds
from tokprune_rt.train.masked import logits_of, rows_of
from tokprune_rt.train.tagging import TagTask, entity_f1
from tokprune_rt.train.top import TopMasks

NAMES = {"ada": "B-PER", "lovelace": "I-PER", "turing": "B-PER", "paris": "B-LOC"}


def sentences(count: int, seed: int) -> Sentences:
    """Random words with names among them; one of several pieces is part of every sentence."""
    rng = np.random.default_rng(seed)
    words = []
    for _ in range(count):
        row = list(rng.choice(WORDS, int(rng.integers(3, 8))))
        for name in rng.choice(["ada lovelace", "turing", "paris"], 3):
            row.insert(int(rng.integers(len(row) + 1)), str(name))
        words.append([*" ".join(row).split(), "counters"])
    return Sentences(words, [[NAMES.get(word, "O") for word in row] for row in words])


def questions(count: int, seed: int, impossible: bool = True) -> Questions:
    """The answer is the one of two words that is there; a fifth has none."""
    rng = np.random.default_rng(seed)
    items = []
    for index in range(count):
        words = list(rng.choice(WORDS, int(rng.integers(5, 60))))
        answers: tuple[tuple[str, int], ...] = ()
        if not impossible or index % 5:
            place = int(rng.integers(len(words)))
            words[place] = ("good", "bad")[index % 2]
            answers = ((words[place], len(" ".join([*words[:place], ""]))),)
        items.append(Question(str(index), "what is the weather", " ".join(words), answers))
    return Questions(items)


TRAIN = {"tags": sentences(192, 1), "answers": questions(160, 1)}
DEV = {"tags": sentences(64, 2), "answers": questions(48, 2)}
CLASSES = {
    "tags": transformers.AutoModelForTokenClassification,
    "answers": transformers.AutoModelForQuestionAnswering,
}
RECIPES: dict[str, Any] = {
    "ltp": lambda run: train_ltp(run, target=0.7, schedule=Schedule(2, 1, 5e-4, 0.05)),
    "top": lambda run: train_top(run, target=0.7, bins=5, schedule=Schedule(4, 2, 5e-4, 0.2)),
    "gate": lambda run: train_gate(run, target=0.7, schedule=Schedule(5, 1, 5e-4, 0.02)),
}


def token_run(kind: str, source: Path, out: Path, lines: list[str]) -> Run:
    settings = Settings(batch_size=4)
    say = lines.append
    return run_of(source, out, train=TRAIN[kind], dev=DEV[kind], settings=settings, say=say)


@pytest.fixture(scope="module", params=list(CLASSES))
def dense(request: pytest.FixtureRequest, tiny: Any, tmp_path_factory: Any) -> tuple[str, Path]:
    torch.set_num_threads(1)
    kind = request.param
    folder = tmp_path_factory.mktemp(kind) / "dense"
    lines: list[str] = []
    run = token_run(kind, tiny("bert"), folder, lines)
    result = finetune(run, epochs=10, rate=2e-3)
    assert result.scores["dense"] > 80, lines
    return kind, folder


@pytest.fixture(scope="module", params=list(RECIPES))
def pruned(request: pytest.FixtureRequest, dense: tuple[str, Path]) -> tuple[str, Path, float]:
    kind, source = dense
    folder = source.parent / request.param
    lines: list[str] = []
    run = token_run(kind, source, folder, lines)
    result = RECIPES[request.param](run)
    assert result.scores["pruned"] > 70, lines
    return kind, folder, result.scores["pruned"]


def test_a_dense_folder_is_transformers_own(dense: tuple[str, Path]) -> None:
    kind, folder = dense
    theirs = CLASSES[kind].from_pretrained(folder)
    model = tokprune_rt.load(folder)
    if kind == "tags":
        assert model.labels == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
        assert theirs.config.label2id["B-PER"] == 2
        found = model.tag("the dog ada lovelace was warm", aggregation_strategy="simple")
        assert [(item["entity_group"], item["word"]) for item in found] == [("PER", "ada lovelace")]
    else:
        item = DEV[kind].items[1]
        assert model.answer(item.question, item.context)["answer"] == item.answers[0][0]


def test_training_and_engine_agree(pruned: tuple[str, Path, float]) -> None:
    """The same tokens after every layer, the same logits of all tokens, the same score."""
    kind, folder, score = pruned
    policy = find_policy(folder)
    assert policy is not None
    assert {step.action for step in policy.steps} == {"restore"}
    assert policy.output is not None
    assert policy.output.kind == {"tags": "tokens_restored", "answers": "span"}[kind]
    assert policy.protect.segment == {"tags": None, "answers": 0}[kind]
    model = tokprune_rt.load(folder, precision="fp32")
    task = existing_task(model.config.task, tuple(model.labels), None)
    data = task.encode(DEV[kind], tokenizer_of(folder))
    encoder = MaskedEncoder(CLASSES[kind].from_pretrained(folder).eval())
    left = 0
    for start in range(0, len(data), 16):
        tokens = data.tokens[start : start + 16]
        with torch.inference_mode(), encoder.choosing(PolicyChooser(policy)):
            output, run = encoder.run(collate(tokens, 0, True, torch.device("cpu")))
        ours = model.forward(
            [item.ids for item in tokens],
            [item.type_ids for item in tokens],
            segment_ids=[item.segments for item in tokens],
            trace=True,
        )
        assert ours.trace is not None and ours.logits is not None
        for layer, alive in enumerate(run.kept):
            for b, row in enumerate(alive.numpy()):
                np.testing.assert_array_equal(np.flatnonzero(row), ours.trace.kept[layer][b])
        for theirs, rows in zip(rows_of(output, run.lengths), ours.logits, strict=True):
            np.testing.assert_allclose(theirs.numpy(), rows, atol=1e-4)
        left += int(run.kept[-1].sum())
    assert left < 0.9 * sum(map(len, data.tokens))
    rows = {row.profile: row for row in evaluate(folder, DEV[kind], rounds=1).rows}
    assert rows["default"].score == pytest.approx(score, abs=1e-4)
    assert rows["default"].macs < 0.95
    if kind == "answers":
        assert rows["off"].answer_lost == 0
        assert 0 <= rows["default"].answer_lost < 1


def test_the_work_of_restored_tokens_is_counted_like_the_runtime_s(
    pruned: tuple[str, Path, float],
) -> None:
    kind, folder, _ = pruned
    policy = find_policy(folder)
    assert policy is not None
    if policy.provenance["method"] == "top":
        row = evaluate(folder, DEV[kind], rounds=1).rows[1]
        assert row.macs == pytest.approx(policy.provenance["macs"], abs=0.06)


def test_evaluation_is_what_the_tasks_give(pruned: tuple[str, Path, float]) -> None:
    """The metrics, once more, from `tag` and `answer` of the running model."""
    kind, folder, score = pruned
    model = tokprune_rt.load(folder, precision="fp32")
    data = DEV[kind]
    if isinstance(data, Questions):
        found = [
            squad.best(
                "f1",
                model.answer(q.question, q.context, handle_impossible_answer=True)["answer"],
                [text for text, _ in q.answers],
            )
            for q in data.items
        ]
        assert 100 * np.mean(found) == pytest.approx(score, abs=1e-4)
        return
    predicted = []
    for words in data.words:
        tokens = model.tag(" ".join(words), ignore_labels=())
        starts = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
        at = {token["start"]: token["entity"] for token in tokens}
        predicted.append([at[int(start)] for start in starts])
    assert 100 * entity_f1(predicted, data.tags) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("kind", ["token-classification", "question-answering"])
def test_learning_decides_as_the_policy(tiny: Any, kind: str) -> None:
    """Where nothing is drawn: the same tokens stay, and a head sees the same of all others."""
    folder = tiny("bert", kind)
    encoder = MaskedEncoder(finetuned_model(folder).eval())
    texts = [("who was it", "the weather was good and the film"), ("a dog", "turing in paris")]
    inputs = collate(tokenizer_of(folder).tokenize(texts), 0, True, torch.device("cpu"))
    widths, leaving = Widths(3, 64, 128), leaving_of(kind)
    masks = TopMasks(widths, 4, [2, 3], leaving)
    thresholds = LtpThresholds(widths, [2, 3], final=1.2, leaving=leaving)
    gates = [Gates(widths, shape, [2, 3], leaving) for shape in ("transkimmer", "adapler")]
    with torch.no_grad():
        masks.bit.copy_(torch.tensor([[20.0, 20.0, -20.0, -20.0]]))
        masks.gate.fill_(20.0)
        # Far beyond any noise.
        for output in gates[0].output:
            output.weight.mul_(1e4)
            output.bias.zero_()
        gates[1].eta.fill_(1.0)
    for method in (masks, thresholds, *gates):
        with torch.inference_mode():
            with encoder.choosing(PolicyChooser(method.policy())):
                wanted, run = encoder.run(inputs)
            with encoder.choosing(method.chooser()):
                found, soft_run = encoder.run(inputs)
        assert torch.equal(soft_run.alive, run.alive), method.name
        left = run.real & ~run.alive
        assert bool(left.any()) and bool((run.alive & (run.segments == 1)).any()), method.name
        counted = torch.stack(soft_run.notes["left"])
        assert torch.equal(counted, torch.stack([kept.sum(dim=1).float() for kept in run.kept]))
        theirs, ours = (logits_of(output, run.real) for output in (wanted, found))
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_gradients_reach_thresholds_and_bits_through_a_head_per_token(tiny: Any) -> None:
    folder = tiny("bert", "token-classification")
    encoder = MaskedEncoder(finetuned_model(folder).eval())
    task = TagTask(("O", "B-PER", "I-PER", "B-LOC"), "accuracy")
    sentence = Sentences([["ada", "was", "good"]], [["B-PER", "O", "O"]])
    data = task.encode(sentence, tokenizer_of(folder))
    inputs = collate(data.tokens, 0, True, torch.device("cpu"))
    leaving = leaving_of(task.kind)
    widths = Widths(3, 64, 128)
    thresholds = LtpThresholds(widths, leaving=leaving)
    masks = TopMasks(widths, 4, (), leaving)
    gates = Gates(widths, "transkimmer", (), leaving)
    torch.manual_seed(0)
    with torch.no_grad():
        masks.bit.fill_(0.0)
        masks.gate.fill_(3.0)
    for method, learned in (
        (thresholds, thresholds.theta),
        (masks, masks.bit),
        (gates, gates.output[0].weight),
    ):
        with encoder.choosing(method.chooser()):
            output, run = encoder.run(inputs)
        targets = task.aligned(data.targets, run.real)
        task.loss(logits_of(output, run.real), targets).backward()
        assert learned.grad is not None and bool((learned.grad != 0).any())


@pytest.mark.parametrize("kind", ["tags", "answers"])
def test_data_that_does_not_fit(kind: str, tiny: Any, tmp_path: Path) -> None:
    texts = Examples(["a", "b"], ["x", "y"])
    source = tiny("bert", {"tags": "token-classification", "answers": "question-answering"}[kind])

    def learn(train: Data, **changes: Any) -> None:
        train_ltp(run_of(source, tmp_path / "out", train=train, dev=DEV[kind], **changes))

    with pytest.raises(ValueError, match=r"training examples: a .* cannot learn from texts"):
        learn(texts)
    with pytest.raises(ValueError, match="is no regression"):
        learn(TRAIN[kind], regression=True)
    with pytest.raises(ValueError, match="unknown metric 'bleu' of"):
        learn(TRAIN[kind], metric="bleu")
    with pytest.raises(ValueError, match="a regression needs texts with a number each"):
        finetune(
            run_of(source, tmp_path / "out", train=TRAIN[kind], dev=DEV[kind], regression=True)
        )
    with pytest.raises(ValueError, match="cannot learn from texts with one label each"):
        evaluate(source, texts)
    if kind == "tags":
        odd = Sentences([["a", "b"]], [["O", "B-DOG"]], ["f.conll:7"])
        with pytest.raises(ValueError, match=r"labels 'B-DOG' \(f\.conll:7, word 2\); known"):
            learn(odd)
        with pytest.raises(ValueError, match=r"needs tags O, B-\.\.\. and I-\.\.\., found: 'A'"):
            TagTask(("A", "B"), "entity-f1")
        with pytest.raises(ValueError, match=r"tagging needs 2 tags or more, found \['O'\]"):
            finetune(run_of(source, tmp_path / "out", train=Sentences([["a"]], [["O"]])))
    else:
        long = Questions([Question("q7", "what " * 70, "the dog", ())])
        with pytest.raises(ValueError, match=r"question q7: the question takes \d+ of 64 tokens"):
            learn(long)
    with pytest.raises(ValueError, match="evaluate needs a sequence-classification, token-"):
        evaluate(tiny("bert"), texts)
    assert not (tmp_path / "out").exists()


def test_several_labels_a_text_are_refused(tiny: Any, tmp_path: Path) -> None:
    several = {"problem_type": "multi_label_classification"}
    source = tiny("bert", "sequence-classification", **several)
    data = Examples(["a"], ["O"])
    with pytest.raises(ValueError, match="the model gives several labels to a text"):
        train_top(run_of(source, tmp_path / "out", train=data, dev=data))
    with pytest.raises(ValueError, match="the model gives several labels to a text"):
        evaluate(source, data)


def test_a_run_says_what_was_cut(tiny: Any, tmp_path: Path) -> None:
    data = Sentences([["warm"] * 70], [["O"] * 69 + ["B-PER"]])
    lines: list[str] = []
    finetune(
        run_of(tiny("bert"), tmp_path / "out", train=data, dev=data, say=lines.append), epochs=1
    )
    assert lines[0].startswith("training examples: 8 words of 1 sentences lie beyond 64 tokens")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["1"] == "B-PER"
    note = evaluate(tmp_path / "out", data, rounds=1).note
    assert note is not None and note.startswith("8 words of 1 sentences")
