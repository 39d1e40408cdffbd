"""Folders that sentence-transformers and this package both read and write, and its evaluators."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import sentences
from same import same

import tokprune_rt
from tokprune_rt.policy import preset

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")

TEXTS = [
    "Ada Lovelace wrote the first program in London.",
    "a",
    "The weather is good, the film was bad!",
    "Alan Turing worked in Manchester and it's a test",
]
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet")
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
DATA = Path(os.environ.get("TOKPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
STSB_DEV = DATA / "glue" / "STS-B" / "dev.tsv"


def theirs_of(folder: Path) -> Any:
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def compare(folder: Path, **options: Any) -> None:
    """Both read the folder and give the same vectors."""
    ours, theirs = tokprune_rt.SentenceTransformer(folder), theirs_of(folder)
    same(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))
    assert ours.max_seq_length == theirs.max_seq_length
    assert ours.prompts == theirs.prompts
    assert ours.similarity_fn_name == theirs.similarity_fn_name
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension()


def assemble(folder: Path, target: Path, *modules: Any, **options: Any) -> Path:
    """Write a model of theirs: a folder's encoder and further modules."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    parts = [Transformer(str(folder)), *modules]
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu", **options).save(
        str(target), create_model_card=False
    )
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_encoder_is_mean_pooled(tiny: Any, family: str) -> None:
    """No modules.json; position ids start where the family has them."""
    compare(tiny(family))


@pytest.mark.parametrize("mode", [*MODES, ("max", "cls"), ("lasttoken", "mean", "weightedmean")])
def test_pooling(tiny: Any, tmp_path: Path, mode: str | tuple[str, ...]) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    compare(assemble(tiny("bert"), tmp_path / "model", Pooling(64, mode)))


def test_legacy_pooling(tiny: Any, tmp_path: Path) -> None:
    """Several of the old booleans concatenate in a fixed order, whatever the file's."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = assemble(tiny("bert"), tmp_path / "model", Pooling(64))
    names = {"mean_tokens": True, "max_tokens": True, "cls_token": True, "lasttoken": False}
    old = {f"pooling_mode_{name}": value for name, value in names.items()}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64} | old)
    )
    compare(folder)


@pytest.mark.parametrize("include", [True, False])
def test_prompts_and_pooling(tiny: Any, tmp_path: Path, include: bool) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = assemble(
        tiny("bert"),
        tmp_path / "model",
        Pooling(64, include_prompt=include),
        prompts={"query": "who wrote ", "document": "the "},
        default_prompt_name="document",
        similarity_fn_name="dot",
        truncate_dim=48,
    )
    compare(folder)
    compare(folder, prompt_name="query")
    ours = tokprune_rt.SentenceTransformer(folder)
    before = ours.encode(TEXTS)
    ours.set_pooling_include_prompt(not include)
    changed = ours.encode(TEXTS)
    assert np.abs(changed - before).max() > 1e-3
    copy = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(copy.encode(TEXTS), changed)
    pool = ours.start_multi_process_pool(["cpu"])
    try:
        np.testing.assert_array_equal(ours.encode(TEXTS, pool=pool), changed)
    finally:
        ours.stop_multi_process_pool(pool)


def test_dense_and_normalise(tiny: Any, tmp_path: Path) -> None:
    import torch
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    dense = Dense(64, 24, activation_function=torch.nn.Tanh())
    folder = assemble(tiny("bert"), tmp_path / "model", Pooling(64), dense, Normalize())
    compare(folder)
    compare(folder, truncate_dim=10, normalize_embeddings=True)


def test_limits(tiny: Any, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    folder = assemble(tiny("bert"), tmp_path / "model", Pooling(64))
    path = folder / "sentence_bert_config.json"
    raw = json.loads(path.read_text()) | {"max_seq_length": 7, "do_lower_case": True}
    path.write_text(json.dumps(raw))
    assert tokprune_rt.SentenceTransformer(folder).max_seq_length == 7
    compare(folder)


@pytest.mark.parametrize("plain", [True, False])
def test_saved_models_load_in_both(tiny: Any, tmp_path: Path, plain: bool) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    source = tiny("bert") if plain else assemble(tiny("bert"), tmp_path / "a", Pooling(64, "cls"))
    prompts = {"query": "who wrote ", "document": "the "}
    ours = tokprune_rt.SentenceTransformer(source, prompts=prompts, similarity_fn_name="dot")
    ours.max_seq_length = 9
    ours.truncate_dim = 20
    target = tmp_path / "saved"
    ours.save_pretrained(target)
    compare(target, prompt_name="query")
    again = tokprune_rt.SentenceTransformer(target)
    assert (again.max_seq_length, again.truncate_dim) == (9, 20)
    assert again.prompts == prompts
    assert again.similarity_fn_name == "dot"
    np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))
    # Over itself, as theirs does it.
    again.max_seq_length = 8
    again.save(target)
    compare(target)
    assert tokprune_rt.SentenceTransformer(target).max_seq_length == 8
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        again.save(tmp_path / "file")


def test_a_saved_policy_is_used_on_request(tiny: Any, tmp_path: Path) -> None:
    policy = preset("quantile", layers=3, locations=[0, 1], q=0.3)
    ours = tokprune_rt.SentenceTransformer(tiny("bert"), policy=policy)
    ours.save_pretrained(tmp_path / "saved")
    compare(tmp_path / "saved")
    again = tokprune_rt.SentenceTransformer(tmp_path / "saved", policy="auto")
    assert np.abs(ours.encode(TEXTS) - ours.encode(TEXTS, profile="off")).max() > 1e-3
    assert again.policy_hash == ours.policy_hash
    np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))


@pytest.fixture(scope="module")
def both(minilm_folder: Path) -> tuple[Any, Any]:
    """Ours and theirs."""
    return tokprune_rt.SentenceTransformer(minilm_folder), theirs_of(minilm_folder)


def scored_pairs(count: int) -> tuple[list[str], list[str], list[float]]:
    """STS-B where it is; else texts with beginnings of theirs, scored by how much there is."""
    if STSB_DEV.exists():
        with STSB_DEV.open(encoding="utf-8") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1 : count + 1]
        return [r[7] for r in rows], [r[8] for r in rows], [float(r[-1]) for r in rows]
    words = [text.split() for text in sentences() if 12 < len(text.split()) < 40][:count]
    kept = [1 + i % len(text) for i, text in enumerate(words)]
    cut = [" ".join(text[:n]) for text, n in zip(words, kept, strict=True)]
    return (
        [" ".join(text) for text in words],
        cut,
        [5 * n / len(text) for text, n in zip(words, kept, strict=True)],
    )


def test_similarity_evaluator(both: tuple[Any, Any], tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.evaluation import (
        EmbeddingSimilarityEvaluator,
    )

    evaluator = EmbeddingSimilarityEvaluator(*scored_pairs(200), name="dev")
    found, expected = (
        model.evaluate(evaluator, str(tmp_path / kind))
        for model, kind in zip(both, ("ours", "theirs"), strict=True)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4)
    assert both[0].model_card_data.evaluations[-1]["metrics"].keys() == expected.keys()
    assert any((tmp_path / "ours").iterdir())


def halves(count: int) -> tuple[list[str], list[str]]:
    """Real texts cut in two: the beginning asks for the rest."""
    words = [text.split() for text in sentences() if 12 < len(text.split()) < 40][:count]
    cut = [len(text) // 2 for text in words]
    return (
        [" ".join(text[:at]) for text, at in zip(words, cut, strict=True)],
        [" ".join(text[at:]) for text, at in zip(words, cut, strict=True)],
    )


def test_retrieval_evaluator_and_search(both: tuple[Any, Any]) -> None:
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer.evaluation import (
        InformationRetrievalEvaluator,
    )

    first, second = halves(40)
    evaluator = InformationRetrievalEvaluator(
        {str(i): text for i, text in enumerate(first)},
        {str(i): text for i, text in enumerate(second)},
        {str(i): {str(i)} for i in range(len(first))},
    )
    found, expected = (model.evaluate(evaluator) for model in both)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.3 < found["cosine_ndcg@10"] <= 1
    hits = [
        util.semantic_search(model.encode_query(first), model.encode_document(second), top_k=3)
        for model in both
    ]
    assert [[hit["corpus_id"] for hit in row] for row in hits[0]] == [
        [hit["corpus_id"] for hit in row] for row in hits[1]
    ]
    mined = [util.paraphrase_mining(model, [*first, *second]) for model in both]
    # By pair: some texts are equal, and rounding decides which pair of them comes first.
    scores = [{(i, j): score for score, i, j in pairs} for pairs in mined]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_hard_negatives(both: tuple[Any, Any]) -> None:
    datasets = pytest.importorskip("datasets")
    from sentence_transformers.util import mine_hard_negatives

    first, second = halves(40)
    pairs = datasets.Dataset.from_dict({"query": first, "answer": second})
    mined = [
        mine_hard_negatives(pairs, model, num_negatives=2, verbose=False).to_list()
        for model in both
    ]
    assert mined[0] == mined[1]
    assert len(mined[0]) > 10


def test_cleanup(tmp_path: Path, tiny: Any) -> None:
    """A save that fails leaves nothing behind."""
    folder = shutil.copytree(tiny("bert"), tmp_path / "model")
    ours = tokprune_rt.SentenceTransformer(folder)
    (folder / "config_sentence_transformers.json").write_text("{")
    with pytest.raises(tokprune_rt.ModelFormatError, match="not valid JSON"):
        ours.save(tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
