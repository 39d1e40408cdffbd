"""Wrong arguments of `load` and of the methods of `Model`: each a specific error, never a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import random_model as rm

import tokprune_rt
from tokprune_rt import _core
from tokprune_rt.inputs import protect_mask


@pytest.fixture(scope="module")
def model(tiny: Any) -> Any:
    return tokprune_rt.load(tiny("bert"))


def test_forced_isa_and_other_load_arguments(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="sse9"):
        tokprune_rt.load(tiny("bert"), isa="sse9")
    monkeypatch.setenv("TOKPRUNE_ISA", "sse9")
    with pytest.raises(ValueError, match="sse9"):
        tokprune_rt.load(tiny("bert"))
    monkeypatch.delenv("TOKPRUNE_ISA")
    with pytest.raises(ValueError, match=r"precision 'int3'.*fp32"):
        tokprune_rt.load(tiny("bert"), precision="int3")
    with pytest.raises(ValueError, match="threads must be at least 1"):
        tokprune_rt.load(tiny("bert"), threads=0)
    with pytest.raises(TypeError, match="threads must be an int"):
        tokprune_rt.load(tiny("bert"), threads="2")  # type: ignore[arg-type]
    for many in (1025, 2**31):
        with pytest.raises(ValueError, match=f"^threads must be at most 1024, got {many}$"):
            tokprune_rt.load(tiny("bert"), threads=many)
    with pytest.raises(TypeError, match=r"^isa must be a str or None, got int$"):
        tokprune_rt.load(tiny("bert"), isa=5)  # type: ignore[arg-type]


def test_a_head_of_two_layers_reads_the_first_token_only() -> None:
    shape = rm.config(head="token", head_activation="tanh")
    message = "config 'head_activation' is 'tanh'; expected '' with 'head' = 'token'"
    with pytest.raises(ValueError, match=message):
        _core.Encoder(shape, rm.tensors(shape), 1)


@pytest.mark.parametrize("bad", [None, 3, b"bytes", {"text": "x"}, 1.5])
def test_encode_wrong_types(model: Any, bad: Any) -> None:
    with pytest.raises(TypeError, match=type(bad).__name__):
        model.encode(bad)
    with pytest.raises(TypeError, match=rf"texts\[1\] must be a str, got {type(bad).__name__}"):
        model.encode(["fine", bad])


def test_encode_wrong_arguments(model: Any) -> None:
    for size, error in ((0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError)):
        with pytest.raises(error, match="batch_size"):
            model.encode(["x"], batch_size=size)
    with pytest.raises(TypeError, match="prompt must be a str"):
        model.encode("x", prompt=3)
    with pytest.raises(ValueError, match="text 0 has 102 tokens, the limit is 64"):
        model.encode("fox " * 100, truncate=False)
    with pytest.raises(ValueError, match="text 1 has 102 tokens"):
        model.encode(["x", "fox " * 100], truncate=False)


def test_odd_texts_encode(model: Any) -> None:
    odd = ["", " ", "\x00", "\ud800", "a\udfffb", "\u202e\u0301", "\U0010ffff", "x" * 100_000]
    found = model.encode(odd)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(model.encode("\ud800"), model.encode("\ufffd"))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([2, 3], TypeError, "put a single sequence into a list"),
        ("text", TypeError, "got str"),
        (None, TypeError, "got NoneType"),
        (5, TypeError, "got int"),
        ([[2, 3], "ab"], TypeError, r"input_ids\[1\] must be a sequence of int, got str"),
        ([[2, 3], None], TypeError, r"input_ids\[1\]"),
        ([[2.0, 3.0]], TypeError, r"input_ids\[0\] must hold integers, got float64"),
        ([[True, False]], TypeError, "got bool"),
        ([["2", "3"]], TypeError, "must hold integers"),
        ([[[2, 3]]], TypeError, "2 dimensions"),
        ([[[2], [3, 4]]], TypeError, "flat sequence"),
        ([[2, 3], []], ValueError, r"input_ids\[1\] is empty"),
        ([[2, 3], [2, -1]], ValueError, r"input_ids\[1\]\[1\] is -1, allowed are 0 to"),
        ([[2, 10**6]], ValueError, r"input_ids\[0\]\[1\] is 1000000"),
        ([[2**40, 3]], ValueError, "is 1099511627776"),
        ([np.array([2, 10**6], object)], ValueError, r"input_ids\[0\]\[1\] is 1000000"),
        ([np.array([2, np.int64(10**6)], object)], ValueError, r"input_ids\[0\]\[1\] is 1000000"),
        ([[2**63, 3]], ValueError, "64 bits"),
        ([np.array([3, 2**63], np.uint64)], ValueError, r"input_ids\[0\]\[1\]"),
        ([[2**70, 3]], ValueError, "64 bits"),
        ([[2] * 65], ValueError, "has 65 tokens, the model takes 64"),
    ],
)
def test_forward_wrong_ids(model: Any, ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.forward(ids)


def test_forward_accepts_arrays(model: Any) -> None:
    expected = model.forward([[2, 9, 3], [2, 8, 3]]).hidden
    for ids in (
        np.array([[2, 9, 3], [2, 8, 3]]),
        np.array([[2, 9, 3], [2, 8, 3]], dtype=np.uint8),
        [np.array([2, 9, 3], dtype=np.int32), (2, 8, 3)],
        ((2, 9, 3), [2, 8, 3]),
    ):
        for a, b in zip(model.forward(ids).hidden, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_forward_wrong_token_types(model: Any, tiny: Any) -> None:
    ids = [[2, 9, 3]]
    with pytest.raises(ValueError, match="token_type_ids has 2 sequences, input_ids has 1"):
        model.forward(ids, token_type_ids=[[0, 0, 0], [0]])
    with pytest.raises(ValueError, match=r"token_type_ids\[0\] has 2 entries"):
        model.forward(ids, token_type_ids=[[0, 0]])
    with pytest.raises(ValueError, match=r"token_type_ids\[0\]\[2\] is 2, allowed are 0 to 1"):
        model.forward(ids, token_type_ids=[[0, 0, 2]])
    untyped = tokprune_rt.load(tiny("distilbert"))
    untyped.forward(ids, token_type_ids=[[0, 0, 0]])
    with pytest.raises(ValueError, match="is 1, allowed are 0 to 0"):
        untyped.forward(ids, token_type_ids=[[0, 0, 1]])


@pytest.mark.parametrize(
    ("protect", "error", "message"),
    [
        (5, TypeError, "protect must be a list of int sequences, got int"),
        ([1, 0, 0], TypeError, "put a single sequence into a list"),
        ([True, False, False], TypeError, "put a single sequence into a list"),
        ([None], TypeError, r"protect\[0\] must be a sequence of int, got NoneType"),
        ([[None] * 3], TypeError, r"protect\[0\] must hold integers or bools, got object"),
        ([[0.9, 0.0, 1.0]], TypeError, r"protect\[0\] must hold integers or bools, got float64"),
        ([["1", "0", "0"]], TypeError, r"protect\[0\] must hold integers or bools, got <U1"),
        ([[2, 0, 0]], ValueError, r"protect\[0\]\[0\] is 2, allowed are 0 to 1"),
        ([[1, 0]], ValueError, r"protect\[0\] has 2 entries, input_ids\[0\] has 3"),
        ([[0, 0, 0]] * 2, ValueError, "protect has 2 sequences, input_ids has 1"),
    ],
)
def test_forward_wrong_protection(
    model: Any, protect: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.forward([[2, 9, 3]], protect=protect)


def test_protection_by_bools_and_integers(model: Any) -> None:
    tokens = model.tokenizer.tokenize(["a", "b"])
    assert [len(item) for item in tokens] == [3, 3]
    rows = [[True, False, True], [False, False, True]]
    for same in (rows, np.array(rows), np.array(rows, np.uint8), [[1, 0, True], (0, 0, 1)]):
        assert protect_mask(same, tokens).tolist() == [1, 0, 1, 0, 0, 1]


def test_unknown_profile(model: Any) -> None:
    for call in (lambda: model.encode("x", profile="p"), lambda: model.forward([], profile="p")):
        with pytest.raises(ValueError, match="unknown profile 'p'; this model has: off"):
            call()


def test_task_wrong_arguments(tiny: Any) -> None:
    classifier = tokprune_rt.load(tiny("bert", "sequence-classification"))
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str or a pair of str, got int"):
        classifier.predict(["x", 3])
    with pytest.raises(TypeError, match=r"texts\[0\]\[1\] must be a str, got NoneType"):
        classifier.predict([("x", None)])
    with pytest.raises(ValueError, match="pair of two texts, got 3"):
        classifier.predict([("x", "y", "z")])
    with pytest.raises(ValueError, match='must have the keys "text"'):
        classifier.predict({"txt": "x"})
    with pytest.raises(TypeError, match="got bytes"):
        classifier.predict(b"x")
    with pytest.raises(ValueError, match="top_k"):
        classifier.predict("x", top_k=0)
    with pytest.raises(ValueError, match="text 0 has"):
        classifier.predict([("fox " * 40, "fox " * 40)], truncate=False)
    tagger = tokprune_rt.load(tiny("bert", "token-classification"))
    with pytest.raises(TypeError, match=r"text\[1\] must be a str"):
        tagger.tag(["x", 3])
    with pytest.raises(ValueError, match=r"aggregation_strategy 'max'.*none, simple"):
        tagger.tag("x", aggregation_strategy="max")
    with pytest.raises(ValueError, match="text 0 has"):
        tagger.tag("fox " * 100, truncate=False)
    assert tagger.tag("a \ud800 b") == tagger.tag("a \ufffd b")
