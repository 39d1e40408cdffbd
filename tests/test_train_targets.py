"""Which tokens carry tags and answers, and how tags and answers are scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokprune_rt.train import Question, Questions, Sentences, squad
from tokprune_rt.train.answering import AnswerTask
from tokprune_rt.train.data import IGNORED, tokenizer_of
from tokprune_rt.train.tagging import TagTask, entities, entity_f1, tag_task


def test_words_and_pieces(tiny: Any) -> None:
    """The first piece carries the tag; what is cut off or empty has none, and says so."""
    task = tag_task(["O", "B-PER"], None)
    assert task.labels == ("O", "B-PER", "I-PER") and task.metric == "entity-f1"
    words = [["counters", "Ada", "-", "x"], ["warm"] * 70, ["a", "\u200b", "dog"]]
    tags = [["O", "B-PER", "O", "O"], ["B-PER", *["O"] * 68, "B-PER"], ["O", "O", "O"]]
    data = task.encode(Sentences(words, tags), tokenizer_of(tiny("bert")))
    rows = [row[: len(item)].tolist() for row, item in zip(data.targets, data.tokens, strict=True)]
    pieces = len(data.tokens[0]) - 2 - 3
    assert pieces > 1
    assert rows[0] == [IGNORED, 0, *[IGNORED] * (pieces - 1), 1, 0, 0, IGNORED]
    assert rows[1] == [IGNORED, 1, *[0] * 61, IGNORED]
    assert data.note is not None
    assert data.note.startswith("9 words of 2 sentences lie beyond 64 tokens (or have none)")
    perfect = [np.eye(3, dtype=np.float32)[row.clamp(min=0)] for row in data.targets]
    # Of three entities, the last one lies beyond the limit.
    assert task.score(perfect, data) == pytest.approx(100 * 2 * 2 / (2 + 3))
    share = TagTask(task.labels, "accuracy").score(perfect, data)
    assert share == pytest.approx(100 * (77 - 9) / 77)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "mpnet"])
def test_first_pieces_of_other_tokenizers(tiny: Any, family: str) -> None:
    task = TagTask(("A", "B"), "accuracy")
    words = ["the", "weather", "was", "unbelievably", "good"]
    tokenizer = tokenizer_of(tiny(family))
    data = task.encode(Sentences([words], [["A", "B", "A", "B", "A"]]), tokenizer)
    text = " ".join(words)
    (encoding,) = tokenizer.encodings([text])
    starts = [encoding.offsets[token][0] for token in data.truth.pieces[0]]
    assert [text[start:].split()[0] for start in starts] == words
    assert (data.targets != IGNORED).sum() == 5


def test_entities_by_hand() -> None:
    tags = ["B-PER", "I-PER", "O", "I-LOC", "I-LOC", "B-LOC", "I-PER", "O", "B-PER", "B-PER"]
    assert entities(tags) == {
        (0, 2, "PER"),
        (3, 5, "LOC"),
        (5, 6, "LOC"),
        (6, 7, "PER"),
        (8, 9, "PER"),
        (9, 10, "PER"),
    }
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O"]]
    assert entity_f1(gold, gold) == 1
    # One of two found, the other with a wrong end, and one too many: 2 * 1 / (3 + 2).
    assert entity_f1([["B-PER", "O", "O", "B-LOC"], ["B-LOC"]], gold) == pytest.approx(0.4)
    assert entity_f1([["O"]], [["O"]]) == 0


def test_answers_are_scored_as_squad_does() -> None:
    assert squad.best("exact", "The  Panthers!", ["panthers"]) == 1
    assert squad.best("f1", "the big Panthers defense", ["Panthers", "a Panthers defense"]) == 0.8
    assert squad.best("exact", "big Panthers", ["Panthers"]) == 0
    assert squad.best("f1", "", []) == 1 and squad.best("f1", "x", []) == 0
    assert squad.best("f1", "the", ["x"]) == 0
    assert squad.best("f1", "", ["the"]) == 1  # no word of this answer counts


def test_windows_and_targets(tiny: Any) -> None:
    """A window with the whole answer points at its tokens, any other at its first token."""
    words = ["warm"] * 80
    words[60] = "counters"
    context = " ".join(words)
    item = Question("1", "what was it", context, (("counters", context.index("counters")),))
    task = AnswerTask((), "f1")
    data = task.encode(Questions([item]), tokenizer_of(tiny("bert")))
    tokenizer = tokenizer_of(tiny("bert"))
    assert len(data) > 1 and max(map(len, data.tokens)) <= 64
    pointed = 0
    for tokens, (first, last) in zip(data.tokens, data.targets.tolist(), strict=True):
        found = tokenizer.join([tokenizer.token(int(i)) for i in tokens.ids[first : last + 1]])
        assert found == "counters" if last else True
        pointed += bool(last)
    assert 0 < pointed < len(data)
