"""What the embedding benchmarks in benchmarks/ count."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import tokprune_rt
from tokprune_rt import Model

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
from embedding_policies import METHODS, embed, plan_of, strength_for
from embedding_tasks import nearest, overlap
from embedding_words import NEGATIONS, classes, fates
from quality_data import Labelled

TEXT = "The villages on the northern shore never lost their way to the market , did n't they ?"


@pytest.fixture(scope="module")
def model() -> Model:
    return tokprune_rt.load("all-MiniLM-L6-v2", policy="off", precision="fp32", threads=1)


def test_what_is_left_of_words(model: Model) -> None:
    """Pooling makes groups of known sizes: every word leads one or is gone."""
    words = TEXT.split()
    plan = plan_of(model, METHODS["pool first (jasper)"](0.5))
    every = fates(model, plan, [(words, [])])["any token"]
    (ids,) = (item.ids for item in model.tokenizer.tokenize([TEXT]))
    left = len(model.forward([ids]).positions[0]), int(np.ceil(0.5 * len(ids)))
    assert left[0] == every.count + 2
    assert every.gone == left[0] - left[1]
    assert every.leading == left[1] - 2  # groups of two or three
    assert every.alone == pytest.approx(0)


def test_classes_of_words(model: Model) -> None:
    words = ["Sonmarg", "has", "no", "1200", "soldiers", "and", "don't", "you", "n't"]
    tags = ["B-location"] + ["O"] * 8
    (encoding,) = model.tokenizer.encodings([" ".join(words)])
    found = classes((words, tags), encoding.offsets)
    assert found[0] == set() == found[-1]
    named = {name: [] for name in ("entity", "number", "negation")}
    for token, own in zip(encoding.tokens, found, strict=True):
        for name in own & named.keys():
            named[name].append(token)
    assert "".join(named["entity"]).replace("##", "") == "sonmarg"
    assert "".join(named["number"]).replace("##", "") == "1200"
    assert named["negation"] == ["no", "t", "t"]
    assert "no" in NEGATIONS


def test_scores_of_vectors() -> None:
    vectors = np.eye(8, dtype=np.float32)[np.arange(120) % 8]
    vectors += np.random.default_rng(0).normal(0, 0.01, vectors.shape).astype(np.float32)
    assert overlap(vectors, vectors, vectors) == 1
    labels = np.arange(120) % 8
    score = nearest(Labelled([], labels[:80]), Labelled([], labels[80:]))
    assert score(vectors, vectors) == 100
    assert score(vectors[::-1], vectors) < 50


def test_strength_reaches_the_level(model: Model) -> None:
    tokens = model.tokenizer.tokenize([TEXT, TEXT * 3])
    kept = strength_for(model, tokens, METHODS["merge"], 1.5)
    assert kept is not None
    assert 1 / embed(model, tokens, plan_of(model, METHODS["merge"](kept))).macs >= 1.5
    assert strength_for(model, tokens, METHODS["merge"], 20.0) is None
