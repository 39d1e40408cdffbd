"""The same calls on sentence-transformers and on `tokprune_rt.SentenceTransformer`."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_calls import SLACK
from same import TOLERANCE, same, same_outcome

import tokprune_rt
from tokprune_rt.integrations.settings import PolicyMismatchWarning
from tokprune_rt.policy import preset

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")

# Neither sorted by length nor all different.
TEXTS = [
    "A man is eating food.",
    "x",
    "The branch line along the estuary was closed in the winter of 1964, and the villages on its "
    "northern shore lost more than a way to the market.",
    "",
    "A man is eating food.",
    "caf\u00e9, na\u00efve; it's 2024!",
]
PROMPTS = {"query": "query: ", "passage": "passage: ", "corpus": "corpus: "}

Call = Callable[[Any], Any]


@pytest.fixture(scope="module")
def both(minilm_folder: Path) -> tuple[Any, Any]:
    """Ours and theirs, without prompts."""
    theirs = sentence_transformers.SentenceTransformer(str(minilm_folder), device="cpu")
    return tokprune_rt.SentenceTransformer(minilm_folder, device="cpu"), theirs


@pytest.fixture(scope="module")
def prompted(minilm_folder: Path) -> tuple[Any, Any]:
    """Ours and theirs, with prompts."""
    settings: dict[str, Any] = {"prompts": PROMPTS, "default_prompt_name": "corpus"}
    theirs = sentence_transformers.SentenceTransformer(str(minilm_folder), device="cpu", **settings)
    return tokprune_rt.SentenceTransformer(minilm_folder, **settings), theirs


ENCODE: dict[str, Call] = {
    "text": lambda m: m.encode(TEXTS[0]),
    "empty text": lambda m: m.encode(""),
    "list": lambda m: m.encode(TEXTS),
    "small batches keep the order": lambda m: m.encode(TEXTS, batch_size=2),
    "tuple": lambda m: m.encode(tuple(TEXTS)),
    "array": lambda m: m.encode(np.array(TEXTS)),
    "object array": lambda m: m.encode(np.array(TEXTS, dtype=object)),
    "inputs": lambda m: m.encode(inputs=TEXTS),
    "sentences": lambda m: m.encode(sentences=TEXTS),
    "positional": lambda m: m.encode(TEXTS, None, "a: ", 4, False, "sentence_embedding"),
    "nothing": lambda m: m.encode([]),
    "nothing as tensor": lambda m: m.encode([], convert_to_tensor=True),
    "nothing as list": lambda m: m.encode([], convert_to_numpy=False),
    "nothing, tokens": lambda m: m.encode([], output_value="token_embeddings"),
    "tensor beats numpy": lambda m: m.encode(TEXTS, convert_to_numpy=True, convert_to_tensor=True),
    "list of tensors": lambda m: m.encode(TEXTS, convert_to_numpy=False),
    "one tensor": lambda m: m.encode(TEXTS[0], convert_to_numpy=False),
    "one text as tensor": lambda m: m.encode(TEXTS[0], convert_to_tensor=True),
    "normalised": lambda m: m.encode(TEXTS, normalize_embeddings=True),
    "truncated": lambda m: m.encode(TEXTS, truncate_dim=50),
    "truncated, normalised": lambda m: m.encode(TEXTS, truncate_dim=50, normalize_embeddings=True),
    "truncated to more": lambda m: m.encode(TEXTS, truncate_dim=5000),
    "token embeddings": lambda m: m.encode(TEXTS, output_value="token_embeddings"),
    "token embeddings of one": lambda m: m.encode(TEXTS[2], output_value="token_embeddings"),
    "everything": lambda m: m.encode(TEXTS[2], output_value=None),
    "everything, prompt": lambda m: m.encode(TEXTS[2], prompt="a b", output_value=None),
    "int8": lambda m: m.encode(TEXTS, precision="int8"),
    "uint8": lambda m: m.encode(TEXTS, precision="uint8", normalize_embeddings=True),
    "int8 tensor": lambda m: m.encode(TEXTS, precision="int8", convert_to_tensor=True),
    "int8 tokens": lambda m: m.encode(TEXTS, precision="int8", output_value="token_embeddings"),
    "precision None": lambda m: m.encode(TEXTS, precision=None),
    "int8 of one": lambda m: m.encode(TEXTS[0], precision="int8"),
    "prompt": lambda m: m.encode(TEXTS, prompt="about: "),
    "task is known": lambda m: m.encode(TEXTS, task="query"),
    "device": lambda m: m.encode(TEXTS, device="cpu"),
    "unknown keyword": lambda m: m.encode(TEXTS, colour="red"),
    "unknown prompt_name": lambda m: m.encode(TEXTS, prompt_name="absent"),
    "unknown precision": lambda m: m.encode(TEXTS, precision="int4"),
    "unknown output": lambda m: m.encode(TEXTS, output_value="words"),
    "batch_size 0": lambda m: m.encode(TEXTS, batch_size=0),
    "batch_size text": lambda m: m.encode(TEXTS, batch_size="a"),
    "prompt no text": lambda m: m.encode(TEXTS, prompt=3),
    "no argument": lambda m: m.encode(),
    "None": lambda m: m.encode(None),
    "number in a list": lambda m: m.encode(["a", 1]),
    "None in a list": lambda m: m.encode(["a", None]),
    "bytes": lambda m: m.encode(b"abc"),
    "set": lambda m: m.encode({"a"}),
    "generator": lambda m: m.encode(text for text in TEXTS),
}


@pytest.mark.parametrize("name", ENCODE)
def test_encode(both: tuple[Any, Any], name: str) -> None:
    ours, theirs = both
    same_outcome(lambda: ENCODE[name](ours), lambda: ENCODE[name](theirs))


def test_texts_that_are_not_in_a_list(both: tuple[Any, Any]) -> None:
    ours, _ = both
    for texts in ({"a"}, (text for text in TEXTS)):
        with pytest.raises(ValueError, match=r"must be a str, got .*; give the texts as a list"):
            ours.encode(texts)


def test_lists_of_everything(both: tuple[Any, Any]) -> None:
    """Per text as there, without the padding of the batch it happened to be in."""
    found, expected = (model.encode(TEXTS, output_value=None) for model in both)
    for a, b in zip(found, expected, strict=True):
        real = int(b["attention_mask"].sum())
        cut = {
            key: value[:real] if key not in ("modality", "sentence_embedding") else value
            for key, value in b.items()
        }
        same(a, cut)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_signs(both: tuple[Any, Any], precision: str) -> None:
    """Packed signs differ only where the value is zero within the tolerance."""
    ours, theirs = both
    found, expected = (model.encode(TEXTS, precision=precision) for model in both)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    offset = 128 if precision == "binary" else 0
    bits = [
        np.unpackbits((packed.astype(int) + offset).astype(np.uint8), axis=1)
        for packed in (found, expected)
    ]
    values = theirs.encode(TEXTS)
    assert np.abs(values[bits[0] != bits[1]]).max(initial=0) < TOLERANCE * SLACK
    assert ours.encode(TEXTS[0], precision=precision).shape == (values.shape[1] // 8,)


PROMPTED: dict[str, Call] = {
    "default": lambda m: m.encode(TEXTS),
    "name": lambda m: m.encode(TEXTS, prompt_name="query"),
    "prompt beats name": lambda m: m.encode(TEXTS, prompt_name="query", prompt="other: "),
    "no prompt": lambda m: m.encode(TEXTS, prompt=""),
    "query": lambda m: m.encode_query(TEXTS),
    "query of one": lambda m: m.encode_query(sentences=TEXTS[0], convert_to_tensor=True),
    "document": lambda m: m.encode_document(TEXTS),
    "document, other prompt": lambda m: m.encode_document(TEXTS, prompt_name="corpus"),
    "query, other prompt": lambda m: m.encode_query(TEXTS, prompt="x "),
    "unknown": lambda m: m.encode(TEXTS, prompt_name="absent"),
    "prompts": lambda m: m.prompts,
    "default_prompt_name": lambda m: m.default_prompt_name,
}


@pytest.mark.parametrize("name", PROMPTED)
def test_prompts(prompted: tuple[Any, Any], name: str) -> None:
    ours, theirs = prompted
    same_outcome(lambda: PROMPTED[name](ours), lambda: PROMPTED[name](theirs))


def test_unknown_prompt_lists_the_keys(prompted: tuple[Any, Any]) -> None:
    for model in prompted:
        with pytest.raises(ValueError, match=r"query.*passage.*corpus"):
            model.encode(TEXTS, prompt_name="absent")


def test_passage_comes_before_corpus(prompted: tuple[Any, Any]) -> None:
    """Both know an empty "document", which comes before the others until it is taken away."""
    ours, theirs = prompted
    assert [model.prompts.pop("document") for model in prompted] == ["", ""]
    try:
        same(ours.encode_document(TEXTS), theirs.encode_document(TEXTS))
        expected = ours.encode(["passage: " + text for text in TEXTS], prompt="")
        same(ours.encode_document(TEXTS), expected)
    finally:
        for model in prompted:
            model.prompts["document"] = ""


A, B = np.random.default_rng(1).normal(size=(2, 4, 6)).astype(np.float32)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize(
    "pair",
    [(A, B), (A[0], B), (A.astype(float), B.astype(float)), (A.tolist(), B.tolist()), (list(A), B)],
    ids=["arrays", "one", "float64", "lists", "list of arrays"],
)
def test_similarity(both: tuple[Any, Any], name: str, pair: tuple[Any, Any]) -> None:
    ours, theirs = both
    for model in both:
        model.similarity_fn_name = name
    assert ours.similarity_fn_name == theirs.similarity_fn_name == name
    same(ours.similarity(*pair), theirs.similarity(*pair))
    same_outcome(lambda: ours.similarity_pairwise(*pair), lambda: theirs.similarity_pairwise(*pair))
    for model in both:
        model.similarity_fn_name = sentence_transformers.SimilarityFunction.COSINE
    assert ours.similarity_fn_name == theirs.similarity_fn_name == "cosine"


MEMBERS: dict[str, Call] = {
    "embedding dimension": lambda m: m.get_embedding_dimension(),
    "max_seq_length": lambda m: m.max_seq_length,
    "get_max_seq_length": lambda m: m.get_max_seq_length(),
    "prompts": lambda m: m.prompts,
    "default_prompt_name": lambda m: m.default_prompt_name,
    "device": lambda m: str(m.device),
    "dtype": lambda m: m.dtype,
    "modalities": lambda m: m.modalities,
    "keywords": lambda m: m.get_model_kwargs(),
    "to": lambda m: m.to("cpu") is m,
    "preprocess": lambda m: dict(m.preprocess(TEXTS)),
    "preprocess, prompt": lambda m: dict(m.preprocess(TEXTS, prompt="about: ")),
    "preprocess pairs": lambda m: dict(m.preprocess([("a b", "c"), ("d", "e")])),
    "tokenize": lambda m: dict(m.tokenize(TEXTS)),
    "preprocess nothing": lambda m: m.preprocess([]),
    "tokenizer": lambda m: m.tokenizer.encode(TEXTS[0]),
    "unknown similarity": lambda m: setattr(m, "similarity_fn_name", "angle"),
    "mismatch": lambda m: m.similarity(A, B[:, :3]),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members(both: tuple[Any, Any], name: str) -> None:
    ours, theirs = both
    same_outcome(lambda: MEMBERS[name](ours), lambda: MEMBERS[name](theirs))


def test_old_names(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert ours.get_sentence_embedding_dimension() == theirs.get_embedding_dimension()
    for model in both:
        with model.truncate_embeddings(7):
            assert model.get_embedding_dimension() == 7
            assert model.encode(TEXTS).shape == (len(TEXTS), 7)
        assert model.encode(TEXTS).shape == (len(TEXTS), 384)
    with ours.truncate_sentence_embeddings(7):
        assert ours.encode(TEXTS[0]).shape == (7,)


def test_max_seq_length_cuts(both: tuple[Any, Any]) -> None:
    text = " ".join(TEXTS * 8)
    for model in both:
        model.max_seq_length = 20
    try:
        same(*(model.encode([text]) for model in both))
        assert both[0].max_seq_length == 20
    finally:
        for model in both:
            model.max_seq_length = 256
    same(*(model.encode([text]) for model in both))
    with pytest.raises(ValueError, match="max_seq_length is 513, the model takes at most 512"):
        both[0].max_seq_length = 513
    with pytest.raises(ValueError, match="leaves no room"):
        both[0].max_seq_length = 2
    with pytest.raises(TypeError, match="max_seq_length must be an int or None, got str"):
        both[0].max_seq_length = "long"


def test_progress_follows_the_logger(
    both: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = (
        "tokprune_rt.integrations.sentence_transformers",
        "sentence_transformers.sentence_transformer.model",
    )
    for model, name in zip(both, loggers, strict=True):
        logger = logging.getLogger(name)
        before = logger.level
        try:
            for level, asked, bar in (
                (logging.INFO, None, True),
                (logging.WARNING, None, False),
                (logging.WARNING, True, True),
                (logging.INFO, False, False),
            ):
                logger.setLevel(level)
                capsys.readouterr()
                model.encode(TEXTS, show_progress_bar=asked)
                assert ("100%" in capsys.readouterr().err) is bar
        finally:
            logger.setLevel(before)


def test_wrong_models(minilm_folder: Path, tiny: Any) -> None:
    make = tokprune_rt.SentenceTransformer
    for options, message in (
        ({"device": "cuda"}, "device must be .*got 'cuda'"),
        ({"default_prompt_name": "absent"}, "'absent' is none of the prompts query, document"),
        ({"similarity_fn_name": "angle"}, "similarity_fn_name must be one of cosine"),
        ({"model_kwargs": {"file_name": "x.onnx"}}, "model_kwargs file_name is not supported"),
        ({"config_kwargs": {"a": 1}}, "config_kwargs a is not supported"),
        ({"modules": []}, "needs model_name_or_path"),
        ({"profile": "fast"}, "unknown profile 'fast'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(minilm_folder, **options)
    with pytest.raises(ValueError, match="without pooling"):
        make(tiny("bert", "token-classification"))
    with pytest.raises(OSError, match="no folder and no installed package"):
        make("nobody/nothing", local_files_only=True)
    with pytest.raises(ValueError, match="this engine runs on CPUs"):
        make(minilm_folder).encode("a", device="mps")


def test_needs_no_torch(minilm_folder: Path) -> None:
    code = (
        "import sys, tokprune_rt\n"
        f"model = tokprune_rt.SentenceTransformer({str(minilm_folder)!r})\n"
        "assert model.encode(['a', 'b'], precision='binary', truncate_dim=64).shape == (2, 8)\n"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_processes(both: tuple[Any, Any]) -> None:
    """A pool's vectors are this process's, bit for bit, in every form."""
    ours, theirs = both
    texts = TEXTS * 3
    expected = ours.encode(texts)
    pool = ours.start_multi_process_pool(["cpu", "cpu"])
    try:
        assert set(pool) == {"input", "output", "processes"}
        np.testing.assert_array_equal(ours.encode(texts, pool=pool, chunk_size=4), expected)
        found = ours.encode_multi_process(texts, pool, batch_size=2, normalize_embeddings=True)
        same(found, theirs.encode(texts, normalize_embeddings=True))
        tokens = ours.encode(TEXTS, pool=pool, output_value="token_embeddings")
        same(tokens, theirs.encode(TEXTS, output_value="token_embeddings"))
        with pytest.raises(ValueError, match="chunk_size must be at least 1"):
            ours.encode(texts, pool=pool, chunk_size=0)
        with pytest.raises(ValueError, match="unknown profile"):
            ours.encode(texts, pool=pool, profile="absent")
        pool["processes"][0].terminate()
        pool["processes"][0].join()
        pool["processes"][1].terminate()
        with pytest.raises(RuntimeError, match="of the pool's processes died"):
            ours.encode(texts, pool=pool)
    finally:
        ours.stop_multi_process_pool(pool)
    with pytest.raises(ValueError, match="target_devices must be"):
        ours.start_multi_process_pool(["cuda:0"])


def test_pickle(prompted: tuple[Any, Any]) -> None:
    ours, _ = prompted
    copy = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(copy.encode(TEXTS), ours.encode(TEXTS))


POLICY = preset(
    "quantile", layers=6, q=0.3, protect_token_ids=[102], profiles={"fast": {"steps": [{"q": 0.6}]}}
)


def test_pruning_is_asked_for(both: tuple[Any, Any], minilm_folder: Path, tmp_path: Path) -> None:
    dense, _ = both
    folder = tokprune_rt.export(minilm_folder, tmp_path / "pruned", policy=POLICY)
    unasked = tokprune_rt.SentenceTransformer(folder)
    np.testing.assert_array_equal(unasked.encode(TEXTS), dense.encode(TEXTS))
    assert unasked.policy_hash == dense.policy_hash == "off"
    pruned = tokprune_rt.SentenceTransformer(folder, policy="auto")
    direct = tokprune_rt.load(folder)
    assert pruned.policy_hash == direct.policy_hash != "off"
    np.testing.assert_array_equal(pruned.encode(TEXTS), direct.encode(TEXTS))
    fast = tokprune_rt.SentenceTransformer(folder, policy="auto", profile="fast")
    np.testing.assert_array_equal(fast.encode(TEXTS), direct.encode(TEXTS, profile="fast"))
    np.testing.assert_array_equal(fast.encode(TEXTS, profile="off"), dense.encode(TEXTS))
    with pytest.raises(ValueError, match=r"left \d+ of \d+ tokens of inputs\[2\]"):
        pruned.encode(TEXTS, output_value="token_embeddings")


def test_policies_that_differ_warn(minilm_folder: Path) -> None:
    model = tokprune_rt.SentenceTransformer(minilm_folder, policy=POLICY)
    model.encode_query("a")
    model.encode_document("b")
    model.encode_document("b", profile="default")
    with pytest.warns(PolicyMismatchWarning, match="documents .*profile fast"):
        model.encode_document("b", profile="fast")
    model.encode_query("a")
