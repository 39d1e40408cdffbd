"""Tokenisation against transformers and sentence-transformers."""

from __future__ import annotations

import json
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FAMILIES

from tokprune_rt.errors import ModelFormatError
from tokprune_rt.loader import describe_model
from tokprune_rt.tokenizer import InputTooLongError, Tokenizer, check_text


def our_tokenizer(folder: Path, **options: Any) -> Tokenizer:
    config, setup = describe_model(folder)
    settings: dict[str, Any] = {
        "max_positions": config.max_positions,
        "max_length": setup.max_seq_length,
        "do_lower_case": setup.do_lower_case,
    }
    return Tokenizer(setup.encoder_folder, config.family.model_type, **(settings | options))


def their_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_pairs_like_transformers(tiny: Any, texts: list[str], family: str) -> None:
    folder = tiny(family)
    theirs, ours = their_tokenizer(folder), our_tokenizer(folder)
    assert ours.max_length == 64
    expected = theirs(texts, truncation=True, max_length=64)
    found = ours.tokenize(texts)
    assert [item.ids.tolist() for item in found] == expected["input_ids"]
    assert all(not item.segments.any() for item in found)

    firsts, seconds = texts, texts[::-1]
    expected = theirs(firsts, seconds, truncation=True, max_length=64)
    pairs = ours.tokenize(list(zip(firsts, seconds, strict=True)))
    assert [item.ids.tolist() for item in pairs] == expected["input_ids"]
    if "token_type_ids" in expected:
        assert [item.type_ids.tolist() for item in pairs] == expected["token_type_ids"]
        assert [item.segments.tolist() for item in pairs] == expected["token_type_ids"]
    else:
        assert not any(item.type_ids.any() for item in pairs)
        ends = [item.segments[-1] for item, text in zip(pairs, seconds, strict=True) if text]
        assert ends == [1] * len(ends)


def test_minilm_like_sentence_transformers(minilm_folder: Path, texts: list[str]) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm_folder), device="cpu")
    ours = our_tokenizer(minilm_folder)
    assert ours.max_length == theirs.max_seq_length == 256
    long = " ".join(["sentence"] * 400)
    for text in [*texts, long]:
        expected = theirs.preprocess([text])["input_ids"][0].tolist()
        assert ours.tokenize([text])[0].ids.tolist() == expected


def test_stored_padding_and_truncation_are_ignored(minilm_folder: Path) -> None:
    stored = json.loads((minilm_folder / "tokenizer.json").read_text())
    assert stored["padding"] and stored["truncation"]["max_length"] == 128
    ours = our_tokenizer(minilm_folder)
    assert len(ours.tokenize(["short"])[0]) == 3
    assert len(ours.tokenize(["word " * 200])[0]) == 202


@pytest.mark.parametrize("family", ["bert", "mpnet", "roberta", "distilbert"])
def test_built_from_vocabulary_files(
    tiny: Any, tmp_path: Path, texts: list[str], family: str
) -> None:
    """The tokenizer built from vocabulary files is the one that transformers saves."""
    plain = tiny(family)
    assert not (plain / "tokenizer.json").exists()
    saved = shutil.copytree(plain, tmp_path / "saved")
    their_tokenizer(plain).save_pretrained(saved)
    assert (saved / "tokenizer.json").exists()
    first, second = our_tokenizer(plain), our_tokenizer(saved)
    marked = [*texts, "a [MASK] and [SEP] and </s> here"]
    for a, b in zip(first.encodings(marked), second.encodings(marked), strict=True):
        assert (a.ids, a.tokens, a.offsets) == (b.ids, b.tokens, b.offsets)


@pytest.mark.parametrize("lower", [True, False])
def test_config_overrules_stored_normalizer(
    minilm_folder: Path, tmp_path: Path, lower: bool
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "config.json", "vocab.txt"):
        shutil.copy(minilm_folder / name, folder)
    options = json.loads((minilm_folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(options | {"do_lower_case": lower}))
    ours, theirs = our_tokenizer(folder), their_tokenizer(folder)
    assert ours.tokenize(["Hello World"])[0].ids.tolist() == theirs("Hello World")["input_ids"]


def test_lower_case_of_sentence_config(tiny: Any) -> None:
    folder = tiny("roberta")
    ours = our_tokenizer(folder, do_lower_case=True)
    plain = our_tokenizer(folder)
    assert ours.tokenize(["PARIS"])[0].ids.tolist() == plain.tokenize(["paris"])[0].ids.tolist()


@pytest.mark.parametrize(
    ("stated", "stored", "expected"),
    [(None, 10**30, 64), (None, 40, 40), (16, 40, 16), (500, 40, 64), (None, None, 64)],
)
def test_length_limit(
    tiny: Any, tmp_path: Path, stated: int | None, stored: int | None, expected: int
) -> None:
    folder = shutil.copytree(tiny("bert"), tmp_path / "model")
    path = folder / "tokenizer_config.json"
    options = json.loads(path.read_text()) | {"model_max_length": stored}
    path.write_text(json.dumps(options))
    assert our_tokenizer(folder, max_length=stated).max_length == expected


def test_left_truncation(tiny: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bert"), tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    text = "the quick brown fox " * 30
    expected = their_tokenizer(folder)(text, truncation=True, max_length=64)["input_ids"]
    assert our_tokenizer(folder).tokenize([text])[0].ids.tolist() == expected


def test_refusing_long_texts(tiny: Any) -> None:
    ours = our_tokenizer(tiny("bert"))
    with pytest.raises(ValueError, match="text 1 has 102 tokens, the limit is 64"):
        ours.tokenize(["short", "fox " * 100], truncate=False)
    with pytest.raises(ValueError, match="text 1500 has 102 tokens"):
        ours.tokenize(["short"] * 1500 + ["fox " * 100], truncate=False)
    assert len(ours.tokenize(["fox " * 62], truncate=False)[0]) == 64


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_lone_surrogates(tiny: Any, family: str) -> None:
    ours = our_tokenizer(tiny(family))
    text = check_text("a \ud800 b\udfff", "text")
    assert text == "a \ufffd b\ufffd"
    assert ours.tokenize([text])[0].ids.size > 2


def test_no_tokenizer(tiny: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bert"), tmp_path / "model")
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelFormatError, match=r"no tokenizer.*tokenizer\.json"):
        our_tokenizer(folder)
    (folder / "sentencepiece.bpe.model").write_bytes(b"x")
    with pytest.raises(ModelFormatError, match=r"only sentencepiece\.bpe\.model.*save_pretrained"):
        our_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: not a valid tokenizer"):
        our_tokenizer(folder)


def test_vocabulary_without_its_special_tokens(tiny: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bert"), tmp_path / "model")
    path = folder / "vocab.txt"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace("[SEP]", "[other]"), encoding="utf-8")
    with pytest.raises(ModelFormatError, match=r"sep_token '\[SEP\]'"):
        our_tokenizer(folder)
    path.write_text(whole.replace("[UNK]", "[other]"), encoding="utf-8")
    with pytest.raises(ModelFormatError, match=r"unknown token '\[UNK\]'"):
        our_tokenizer(folder)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("stride", [0, 8, 1000])
def test_windows_like_transformers(tiny: Any, family: str, stride: int) -> None:
    folder = tiny(family)
    question = "Who wrote the first program?"
    context = "Ada Lovelace wrote the first program in London, it is a test. " * 6
    theirs = their_tokenizer(folder)
    room = 48 - theirs.num_special_tokens_to_add(pair=True) - len(theirs.tokenize(question))
    used = min(stride, room * 3 // 4)
    expected = theirs(
        question,
        context,
        truncation="only_second",
        max_length=48,
        stride=used,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    ours = our_tokenizer(folder)
    found = list(ours.windows(question, context, max_length=48, stride=stride))
    assert [item.tokens.ids.tolist() for item in found] == expected["input_ids"]
    for item, offsets in zip(found, expected["offset_mapping"], strict=True):
        assert [tuple(pair) for pair in item.offsets.tolist()] == offsets
    total = sum(len(item.tokens) for item in found)
    same = ours.windows(question, context, max_length=48, stride=stride, most=total)
    assert len(list(same)) == len(found) > 1
    wanted = f"have {total} tokens in {len(found)} windows, the limit is {total - 1}"
    with pytest.raises(InputTooLongError, match=wanted):
        ours.windows(question, context, max_length=48, stride=stride, most=total - 1)


def test_a_long_question_does_not_make_a_window_of_every_token(tiny: Any) -> None:
    ours = our_tokenizer(tiny("bert"))
    found = list(ours.windows("fox " * 30, "dog " * 200, max_length=48, stride=47))
    room = 48 - 30 - 3
    assert [int(item.in_context.sum()) for item in found[:-1]] == [room] * (len(found) - 1)
    assert len(found) == math.ceil((200 - room) / (room - room * 3 // 4)) + 1


def test_threads_share_a_tokenizer(tiny: Any) -> None:
    ours = our_tokenizer(tiny("bert"))
    items = ["the quick brown fox", "fox " * 50, "a"]
    expected = [item.ids.tolist() for item in ours.tokenize(items)]
    failures: list[object] = []

    def work(truncate: bool) -> None:
        for _ in range(50):
            found = [item.ids.tolist() for item in ours.tokenize(items, truncate=truncate)]
            if found != expected:
                failures.append(found)

    workers = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
