"""`tokprune_rt.pipeline` against transformers' own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from same import same

import tokprune_rt
from tokprune_rt.policy import preset

transformers = pytest.importorskip("transformers")

TEXTS = [
    "Ada Lovelace wrote the first program in London.",
    "a",
    "The weather is good, the film was bad!",
    "Alan Turing worked in Manchester and it's a test",
]
FAMILIES = ("bert", "roberta", "distilbert", "electra", "mpnet")


def both(task: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    ours = tokprune_rt.pipeline(task, model=folder, **options)
    options.pop("policy", None)
    theirs = transformers.pipeline(
        task, model=str(folder), tokenizer=str(folder), device="cpu", **options
    )
    assert type(ours) is type(theirs)
    return ours, theirs


def numbers(value: Any) -> Any:
    """Numpy's scalars, which some strategies return, as floats."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value) if isinstance(value, np.floating) else value


@pytest.mark.parametrize("family", FAMILIES)
def test_feature_extraction(tiny: Any, family: str) -> None:
    ours, theirs = both("feature-extraction", tiny(family))
    same(ours(TEXTS), theirs(TEXTS))
    same(ours(TEXTS[0]), theirs(TEXTS[0]))
    same(ours(TEXTS[0], return_tensors=True), theirs(TEXTS[0], return_tensors=True))


@pytest.mark.parametrize("task", ["text-classification", "sentiment-analysis"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_classification(tiny: Any, family: str, task: str) -> None:
    ours, theirs = both(task, tiny(family, "sequence-classification"))
    same(ours(TEXTS), theirs(TEXTS))
    same(ours(TEXTS[0]), theirs(TEXTS[0]))
    same(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))
    same(ours(TEXTS, function_to_apply="none"), theirs(TEXTS, function_to_apply="none"))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[2]}
    same(ours(pair), theirs(pair))
    long = " ".join(TEXTS * 20)
    same(ours(long, truncation=True), theirs(long, truncation=True))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "mpnet"])
def test_token_classification(tiny: Any, family: str, strategy: str) -> None:
    options = {"aggregation_strategy": strategy}
    ours, theirs = both("token-classification", tiny(family, "token-classification"), **options)
    found, expected = ours(TEXTS), theirs(TEXTS)
    same(numbers(found), numbers(expected))
    assert sum(map(len, found)) > 3
    same(numbers(ours(TEXTS[0])), numbers(theirs(TEXTS[0])))
    if strategy != "none":
        long = " ".join(TEXTS * 6)
        same(numbers(ours(long, stride=8)), numbers(theirs(long, stride=8)))


QUESTION, CONTEXT = "who wrote the program?", " ".join(TEXTS * 3)


def test_question_answering(tiny: Any) -> None:
    """The forms of release 4's pipeline; the answers are `Model.answer`'s, which has its tests."""
    folder = tiny("bert", "question-answering")
    model, ours = tokprune_rt.load(folder), tokprune_rt.pipeline("question-answering", folder)
    expected = model.answer(QUESTION, CONTEXT)
    assert list(expected) == ["score", "start", "end", "answer"]
    assert ours(question=QUESTION, context=CONTEXT) == expected
    asked = {"question": QUESTION, "context": CONTEXT}
    assert ours(asked) == expected
    assert ours([asked, asked]) == [expected, expected]
    assert ours(question=[QUESTION] * 2, context=CONTEXT) == [expected, expected]
    top = ours(question=QUESTION, context=CONTEXT, top_k=3, max_answer_len=4)
    assert top == model.answer(QUESTION, CONTEXT, top_k=3, max_answer_len=4)
    assert len(top) == 3
    set_before = tokprune_rt.pipeline("question-answering", folder, top_k=3, max_answer_len=4)
    assert set_before(asked) == top
    for call, message in (
        (lambda: ours(), "there is no question"),
        (lambda: ours({"question": "a"}), "input 0 must be"),
        (lambda: ours(asked, colour="red"), "colour"),
        (lambda: ours(question=["a", "b"], context=["c"]), "2 questions come with 1 contexts"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_pruned(tiny: Any) -> None:
    steps = {"layers": 3, "locations": [0, 1], "q": 0.5}
    dropping, restoring = preset("quantile", **steps), preset("quantile", action="restore", **steps)
    folder = tiny("bert", "sequence-classification")
    ours, theirs = both("text-classification", folder, policy=dropping)
    direct = tokprune_rt.load(folder, policy=dropping).predict(TEXTS)
    same(ours(TEXTS), direct)
    assert [row["score"] for row in ours(TEXTS)] != [row["score"] for row in theirs(TEXTS)]
    folder = tiny("bert", "token-classification")
    tagger, _ = both("token-classification", folder, policy=restoring)
    direct = tokprune_rt.load(folder, policy=restoring).tag(TEXTS)
    same(numbers(tagger(TEXTS)), direct)
    features = tokprune_rt.pipeline("feature-extraction", tiny("bert"), policy=dropping)
    with pytest.raises(ValueError, match=r"left \d+ of \d+ tokens"):
        features(TEXTS[0])


def test_refusals(tiny: Any) -> None:
    folder = tiny("bert")
    with pytest.raises(KeyError, match="unknown task 'fill-mask'; supported are feature-extract"):
        tokprune_rt.pipeline("fill-mask", model=folder)
    with pytest.raises(ValueError, match="needs a sequence-classification model"):
        tokprune_rt.pipeline("text-classification", model=folder)
    with pytest.raises(ValueError, match="device must be"):
        tokprune_rt.pipeline("feature-extraction", model=folder, device="cuda:0")
    with pytest.raises(ValueError, match="unknown profile"):
        tokprune_rt.pipeline("feature-extraction", model=folder, profile="fast")


def test_saved(tiny: Any, tmp_path: Path) -> None:
    folder = tiny("bert", "sequence-classification")
    ours = tokprune_rt.pipeline("text-classification", folder)
    ours.save_pretrained(tmp_path)
    same(tokprune_rt.pipeline("text-classification", tmp_path)(TEXTS), ours(TEXTS))
