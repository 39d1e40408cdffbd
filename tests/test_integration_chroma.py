"""Chroma: a collection with this package's embedding function, reopened from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import QUERY, TEXTS

import tokprune_rt
from tokprune_rt.integrations.settings import PolicyMismatchWarning
from tokprune_rt.policy import preset

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def function() -> Any:
    pytest.importorskip("chromadb")
    from tokprune_rt.integrations.chroma import TokpruneEmbeddingFunction

    return TokpruneEmbeddingFunction


def client(folder: Path) -> Any:
    import chromadb
    from chromadb.config import Settings

    # Else a second client of the same folder would be handed the first one's cache.
    chromadb.api.client.SharedSystemClient.clear_system_cache()
    return chromadb.PersistentClient(
        path=str(folder), settings=Settings(anonymized_telemetry=False)
    )


def test_reopened_collection(
    function: Any, minilm_folder: Path, minilm: Any, tmp_path: Path
) -> None:
    made = client(tmp_path).create_collection(
        "texts", embedding_function=function(str(minilm_folder), normalize_embeddings=True)
    )
    made.add(ids=[str(i) for i in range(len(TEXTS))], documents=TEXTS)
    # By name only: the function comes from what the collection stored.
    reopened = client(tmp_path).get_collection("texts")
    found = reopened.query(query_texts=[QUERY], n_results=2, include=["embeddings", "distances"])
    assert set(found["ids"][0]) == {"0", "2"}
    query, documents = minilm.encode(QUERY), minilm.encode(TEXTS)
    np.testing.assert_allclose(
        np.asarray(found["embeddings"][0]),
        documents[[int(i) for i in found["ids"][0]]],
        atol=1e-6,
    )
    expected = sorted(1 - documents @ query)[:2]
    np.testing.assert_allclose(found["distances"][0], expected, atol=1e-5)


def test_forms(function: Any, minilm_folder: Path, minilm: Any) -> None:
    made = function(str(minilm_folder))
    rows = made(TEXTS)
    assert {(type(row), row.dtype) for row in rows} == {(np.ndarray, np.dtype(np.float32))}
    np.testing.assert_array_equal(rows, minilm.encode(TEXTS))
    np.testing.assert_array_equal(made.embed_query([QUERY])[0], minilm.encode(QUERY))
    config = json.loads(json.dumps(made.get_config()))
    assert config == {
        "model_name": str(minilm_folder),
        "normalize_embeddings": False,
        "policy_hash": "off",
    }
    function.validate_config(config)
    np.testing.assert_array_equal(function.build_from_config(config)(TEXTS), rows)
    assert not made.is_legacy()
    with pytest.raises(ValueError, match="model_name must be a str"):
        function.validate_config({})


def test_another_policy_warns(function: Any, minilm_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(preset("quantile", layers=6, q=0.4)))
    made = client(tmp_path / "store").create_collection(
        "texts", embedding_function=function(str(minilm_folder), policy=str(path))
    )
    made.add(ids=["0"], documents=TEXTS[:1])
    assert client(tmp_path / "store").get_collection("texts").count() == 1
    path.write_text(json.dumps(preset("quantile", layers=6, q=0.6)))
    with pytest.warns(PolicyMismatchWarning, match="should not be compared"):
        client(tmp_path / "store").get_collection("texts").query(query_texts=[QUERY])


def test_prompts(function: Any, prompted_folder: Path) -> None:
    model = tokprune_rt.load(prompted_folder)
    query = model.encode(QUERY, prompt_name="query")
    expected = model.encode(TEXTS, prompt_name="document")
    assert np.abs(query - model.encode(QUERY, prompt_name="document")).max() > 1e-3
    prompted = function(str(prompted_folder))
    np.testing.assert_array_equal(prompted.embed_query([QUERY])[0], query)
    np.testing.assert_array_equal(prompted(TEXTS), expected)
