"""Real weights, real text: all-MiniLM-L6-v2 beside sentence-transformers."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import enough, spread
from engine_calls import SLACK
from scipy.stats import spearmanr

import tokprune_rt

SENTENCES = enough(1200)
PAIRS = enough(1500)
# Labelled data is not shipped; a folder of GLUE files beside the repository is used if present.
DATA = Path(os.environ.get("TOKPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
STSB_DEV = DATA / "glue" / "STS-B" / "dev.tsv"


@pytest.fixture(scope="module")
def sentence_transformer(minilm_folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm_folder), device="cpu")


def test_embeddings_of_real_text(
    minilm_folder: Path, sentence_transformer: Any, tmp_path: Path
) -> None:
    # The published limit of 256 tokens is raised on both sides to what the weights allow.
    folder = shutil.copytree(minilm_folder, tmp_path / "model", copy_function=os.symlink)
    (folder / "sentence_bert_config.json").unlink()
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    ours = tokprune_rt.load(folder)
    texts = spread(SENTENCES)
    lengths = [len(tokens) for tokens in ours.tokenizer.tokenize(texts)]
    assert min(lengths) <= 3 and max(lengths) == 512
    published = sentence_transformer.max_seq_length
    sentence_transformer.max_seq_length = 512
    try:
        expected = sentence_transformer.encode(texts, batch_size=64)
    finally:
        sentence_transformer.max_seq_length = published
    np.testing.assert_allclose(ours.encode(texts), expected, rtol=0, atol=2e-5 * SLACK)


def test_hidden_states_at_full_length(minilm: Any, sentence_transformer: Any) -> None:
    import torch

    encoder = sentence_transformer[0].auto_model
    generator = np.random.default_rng(0)
    for length in (1, 2, 255, 500, 512):
        ids = generator.integers(1000, 30000, length)
        with torch.inference_mode():
            expected = encoder(torch.tensor(ids[None])).last_hidden_state[0].numpy()
        actual = minilm.forward([ids.tolist()]).hidden[0]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * SLACK)


@pytest.fixture(scope="module")
def exact(minilm_folder: Path) -> Any:
    """Unit-length embeddings at fp32."""
    model = tokprune_rt.load(minilm_folder, "off", "fp32")
    return model.encode(spread(enough(400)), normalize_embeddings=True)


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.9999), ("int8", 0.98)])
def test_reduced_precision_stays_close(
    minilm_folder: Path, exact: Any, precision: str, least: float
) -> None:
    """The smallest cosine to fp32 over texts of every length."""
    model = tokprune_rt.load(minilm_folder, "off", precision)
    found = model.encode(spread(enough(400)), normalize_embeddings=True)
    cosine = np.sum(exact.astype(np.float64) * found, axis=1)
    assert least <= cosine.min() < 1


def test_bf16x3_is_float32(minilm_folder: Path, exact: Any) -> None:
    """Without matrix tiles to the bit, with them to 16 bits of every product."""
    model = tokprune_rt.load(minilm_folder, "off", "bf16x3")
    found = model.encode(spread(enough(400)), normalize_embeddings=True)
    if model.engine.encoder.precision == "fp32":
        np.testing.assert_array_equal(found, exact)
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5 * SLACK)


@pytest.mark.skipif(not STSB_DEV.exists(), reason="STS-B is not shipped with the project")
def test_stsb_spearman(minilm: Any, sentence_transformer: Any) -> None:
    with STSB_DEV.open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1 : PAIRS + 1]
    gold = [float(row[-1]) for row in rows]
    texts = [[row[7] for row in rows], [row[8] for row in rows]]

    def correlation(encode: Any) -> float:
        a, b = (encode(side, normalize_embeddings=True) for side in texts)
        return float(spearmanr(np.sum(a * b, axis=1), gold).statistic)

    ours, theirs = correlation(minilm.encode), correlation(sentence_transformer.encode)
    assert round(ours, 4) == round(theirs, 4)
