"""Every task against the pipelines of transformers and the cross-encoder."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_calls import SLACK

import tokprune_rt
from tokprune_rt.tasks.answer import _characters, _probabilities, best_answers
from tokprune_rt.tokenizer import Tokens, Window

SENTENCES = [
    "Ada Lovelace wrote the first program in London.",
    "a",
    "The weather is good, the film was bad!",
    "Alan Turing worked in Manchester and it's a test " * 3,
]


def their_pipeline(kind: str, folder: Path) -> Any:
    import transformers

    return transformers.pipeline(kind, model=str(folder), tokenizer=str(folder), device="cpu")


def close(found: Any, expected: Any) -> None:
    """The same structure, numbers within 1e-5."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            close(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            close(a, b)
    elif isinstance(expected, float | np.floating):
        assert isinstance(found, float)
        assert found == pytest.approx(float(expected), abs=1e-5 * SLACK)
    else:
        assert found == expected


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet"])
@pytest.mark.parametrize("problem", [None, "regression", "multi_label_classification", "one"])
def test_predict_like_the_pipeline(tiny: Any, family: str, problem: str | None) -> None:
    changes: dict[str, Any] = {} if problem in (None, "one") else {"problem_type": problem}
    if problem in ("one", "regression"):
        changes |= {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    folder = tiny(family, "sequence-classification", **changes)
    theirs, ours = their_pipeline("text-classification", folder), tokprune_rt.load(folder)
    close(ours.predict(SENTENCES), theirs(SENTENCES))
    close(ours.predict(SENTENCES[0]), theirs(SENTENCES[0]))
    close(ours.predict(SENTENCES, top_k=2), theirs(SENTENCES, top_k=2))
    close(ours.predict(SENTENCES[0], top_k=None), theirs(SENTENCES[0], top_k=None))
    pairs = [{"text": a, "text_pair": b} for a, b in zip(SENTENCES, SENTENCES[::-1], strict=True)]
    expected = theirs(pairs, truncation=True)
    close(ours.predict(pairs), expected)
    close(ours.predict([(p["text"], p["text_pair"]) for p in pairs]), expected)
    close(ours.predict([[p["text"], p["text_pair"]] for p in pairs]), expected)
    close(ours.predict(pairs[0]), expected[:1])
    close(ours.predict((pairs[0]["text"], pairs[0]["text_pair"])), expected[:1])


def test_raw_scores(tiny: Any) -> None:
    model = tokprune_rt.load(tiny("bert", "sequence-classification"))
    logits = model.predict(SENTENCES, raw_scores=True)
    assert logits.shape == (4, 4) and logits.dtype == np.float32
    np.testing.assert_array_equal(model.predict(SENTENCES[1], raw_scores=True), logits[1])
    tokens = model.tokenizer.tokenize(SENTENCES)
    out = model.forward([item.ids for item in tokens])
    np.testing.assert_allclose(out.logits, logits, rtol=0, atol=1e-6)
    assert model.predict([], raw_scores=True).shape == (0, 4)
    assert model.predict([]) == []


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "camembert", "distilbert", "electra", "mpnet"]
)
@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_tag_like_the_pipeline(tiny: Any, texts: list[str], family: str, strategy: str) -> None:
    folder = tiny(family, "token-classification")
    theirs, ours = their_pipeline("token-classification", folder), tokprune_rt.load(folder)
    for text in [*SENTENCES, *texts]:
        if not text:
            continue
        expected = theirs(text, aggregation_strategy=strategy)
        close(ours.tag(text, aggregation_strategy=strategy), expected)
    every = theirs(SENTENCES[0], aggregation_strategy=strategy, ignore_labels=["B-PER"])
    found = ours.tag(SENTENCES, aggregation_strategy=strategy, ignore_labels=["B-PER"])
    close(found[0], every)
    assert ours.tag("") == []
    assert ours.tag([]) == []


QUESTION = "Who wrote the first program?"
CONTEXT = (
    "Ada Lovelace wrote the first program in London. Paris is the capital of France. "
    "Alan Turing worked in Manchester, counterrevolutionaries did not; it's 1936. "
) * 3


def reference_answers(
    folder: Path, max_length: int, stride: int, longest: int, impossible: bool
) -> list[dict[str, Any]]:
    """Every window's spans by brute force, in float64, on the logits of transformers."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    windows = tokenizer(
        QUESTION,
        CONTEXT,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    best: dict[tuple[int, int], dict[str, Any]] = {}
    null = 1.0
    for index, ids in enumerate(windows["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in windows:
            inputs["token_type_ids"] = torch.tensor([windows["token_type_ids"][index]])
        with torch.no_grad():
            out = model(**inputs)
        encoding = windows.encodings[index]
        inside = np.array([owner == 1 for owner in encoding.sequence_ids])
        allowed = inside.copy()
        allowed[0] |= impossible
        sides = []
        for logits in (out.start_logits, out.end_logits):
            values = np.where(allowed, logits[0].double().numpy(), -np.inf)
            exped = np.exp(values - values.max())
            sides.append(exped / exped.sum())
        start, end = sides
        if impossible:
            null = min(null, start[0] * end[0])
        for i in np.flatnonzero(inside):
            for j in range(i, min(i + longest, len(ids))):
                if not inside[j]:
                    continue
                first = encoding.word_to_chars(encoding.token_to_word(i), 1)[0]
                last = encoding.word_to_chars(encoding.token_to_word(j), 1)[1]
                score = float(start[i] * end[j])
                if score > best.get((first, last), {"score": -1.0})["score"]:
                    best[first, last] = {
                        "score": score,
                        "start": first,
                        "end": last,
                        "answer": CONTEXT[first:last],
                    }
    if impossible:
        best[0, 0] = {"score": null, "start": 0, "end": 0, "answer": ""}
    return sorted(best.values(), key=lambda item: -item["score"])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
@pytest.mark.parametrize("impossible", [False, True])
def test_answer(tiny: Any, family: str, impossible: bool) -> None:
    folder = tiny(family, "question-answering")
    model = tokprune_rt.load(folder)
    options: dict[str, Any] = {"max_seq_len": 56, "doc_stride": 8, "max_answer_len": 6}
    expected = reference_answers(folder, 56, 8, 6, impossible)
    options["handle_impossible_answer"] = impossible
    close(model.answer(QUESTION, CONTEXT, **options), expected[0])
    found = model.answer(QUESTION, CONTEXT, top_k=3, **options)
    close(found, expected[:3])
    single = model.answer(QUESTION, CONTEXT, batch_size=1, **options)
    close(single, expected[0])


def test_answer_refuses(tiny: Any) -> None:
    model = tokprune_rt.load(tiny("bert", "question-answering"))
    with pytest.raises(ValueError, match="context is empty"):
        model.answer("who?", "  ")
    with pytest.raises(ValueError, match="question is empty"):
        model.answer("", "text")
    with pytest.raises(ValueError, match="leaves no room"):
        model.answer("fox " * 80, "text")
    with pytest.raises(TypeError, match="context must be a str, got NoneType"):
        model.answer("who?", None)
    with pytest.raises(ValueError, match="top_k"):
        model.answer("who?", "text", top_k=0)
    for length in (0, -5, "x", 40.0, True):
        wanted = f"max_seq_len must be a positive int or None, got {length!r}"
        with pytest.raises(ValueError, match=wanted):
            model.answer("who?", "text", max_seq_len=length)
    for stride in (-1, 40, 1000, 1.5, "x", True):
        wanted = f"from 0 to 39, as a window has 40 tokens, or None, got {stride!r}"
        with pytest.raises(ValueError, match=wanted):
            model.answer("who?", "text", max_seq_len=40, doc_stride=stride)
    half = model.answer(QUESTION, CONTEXT, max_seq_len=40, doc_stride=20)
    assert half == model.answer(QUESTION, CONTEXT, max_seq_len=40)
    model.answer(QUESTION, CONTEXT, max_seq_len=40, doc_stride=39)


def all_answers(
    windows: list[Window], logits: list[Any], top_k: int, longest: int, impossible: bool
) -> list[tuple[float, int, int]]:
    """The ``top_k`` best pairs of every window, sorted together, each range once."""
    found, null = [], 1.0
    for window, rows in zip(windows, logits, strict=True):
        start, end = _probabilities(rows, window.in_context, impossible)
        if impossible:
            null = min(null, float(start[0] * end[0]))
            start[0] = end[0] = 0
        inside = np.flatnonzero(window.in_context)
        pairs = [(i, j) for i in inside for j in inside if i <= j < i + longest]
        pairs = sorted(pairs, key=lambda pair: -float(start[pair[0]] * end[pair[1]]))[:top_k]
        found += [(float(start[i] * end[j]), *_characters(window, i, j)) for i, j in pairs]
    if impossible:
        found.append((null, 0, 0))
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for item in sorted(found, key=lambda item: -item[0]):
        best.setdefault(item[1:], item)
    return list(best.values())[:top_k]


def windows_of_letters(count: int, length: int, step: int) -> list[Window]:
    """Windows of a one-letter question, and of a context with two tokens to a word."""
    zeros = np.zeros(length, np.int32)
    windows = []
    for place in range(0, count * step, step):
        first = place + np.arange(length)
        offsets = np.stack([first, first + 1], axis=1)
        windows.append(Window(Tokens(zeros, zeros, zeros), offsets, first // 2, zeros == 0))
        windows[-1].in_context[[0, 1, -1]] = False
    return windows


@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize(("top_k", "longest"), [(1, 4), (3, 1), (7, 30), (1000, 5)])
def test_the_best_of_all_windows(top_k: int, longest: int, impossible: bool) -> None:
    """Of equal scores, too, the first one counts."""
    random = np.random.default_rng(top_k)
    windows = windows_of_letters(9, 20, 8)
    logits = [random.integers(0, 3, (20, 2)).astype(np.float32) for _ in windows]
    found = best_answers(windows, logits, "x" * 100, top_k, longest, impossible)
    wanted = all_answers(windows, logits, top_k, longest, impossible)
    assert [(item["score"], item["start"], item["end"]) for item in found] == wanted


def test_answers_beyond_those_asked_for_are_not_kept() -> None:
    random = np.random.default_rng(0)
    windows = windows_of_letters(200, 60, 30)
    logits = [random.normal(size=(60, 2)).astype(np.float32) for _ in windows]
    tracemalloc.start()
    try:
        found = best_answers(windows, logits, "x" * 10_000, 500, 60)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 500 and most < 5_000_000


@pytest.mark.parametrize("activation", [None, "Identity", "Sigmoid", "legacy", "sentence file"])
def test_rank_like_cross_encoder(tiny: Any, tmp_path: Path, activation: str | None) -> None:
    from sentence_transformers import CrossEncoder

    built = tiny(
        "bert", "sequence-classification", id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}
    )
    folder = shutil.copytree(built, tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    identity = "torch.nn.modules.linear.Identity"
    if activation == "legacy":
        raw["sbert_ce_default_activation_function"] = identity
    elif activation in ("Identity", "Sigmoid"):
        name = identity if activation == "Identity" else "torch.nn.modules.activation.Sigmoid"
        raw["sentence_transformers"] = {"activation_fn": name}
    (folder / "config.json").write_text(json.dumps(raw))
    theirs = CrossEncoder(str(folder), device="cpu")
    if activation == "sentence file":
        import torch

        theirs.activation_fn = torch.nn.Identity()
        folder = tmp_path / "saved"
        theirs.save_pretrained(str(folder))
        theirs = CrossEncoder(str(folder), device="cpu")
    ours = tokprune_rt.load(folder)
    query = "who wrote the program?"
    close(ours.rank(query, SENTENCES), theirs.rank(query, SENTENCES))
    close(
        ours.rank(query, SENTENCES, top_k=2, return_documents=True),
        theirs.rank(query, SENTENCES, top_k=2, return_documents=True),
    )
    assert ours.rank(query, []) == []


def test_rank_refuses(tiny: Any, tmp_path: Path) -> None:
    many = tokprune_rt.load(tiny("bert", "sequence-classification"))
    with pytest.raises(ValueError, match=r"one label.*has 4"):
        many.rank("a", ["b"])
    one = tiny("bert", "sequence-classification", id2label={0: "x"}, label2id={"x": 0})
    model = tokprune_rt.load(one)
    with pytest.raises(TypeError, match="docs must be a list"):
        model.rank("a", "b")
    with pytest.raises(TypeError, match=r"docs\[1\] must be a str, got int"):
        model.rank("a", ["b", 3])
    with pytest.raises(ValueError, match="top_k"):
        model.rank("a", ["b"], top_k=0)
    folder = shutil.copytree(one, tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    raw["sentence_transformers"] = {"activation_fn": "torch.nn.Softshrink"}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"torch\.nn\.Softshrink"):
        tokprune_rt.load(folder).rank("a", ["b"])


def test_methods_need_their_head(tiny: Any) -> None:
    plain = tokprune_rt.load(tiny("bert"))
    for call in (
        lambda: plain.predict("x"),
        lambda: plain.tag("x"),
        lambda: plain.answer("x", "y"),
        lambda: plain.rank("x", ["y"]),
    ):
        with pytest.raises(ValueError, match="is a features model"):
            call()
    with pytest.raises(ValueError, match="without pooling"):
        tokprune_rt.load(tiny("bert", "token-classification")).encode("x")
