"""Haystack: pipelines with this package's embedders, serialised and restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import QUERY, TEXTS

import tokprune_rt
from tokprune_rt.policy import preset

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def module() -> Any:
    pytest.importorskip("haystack")
    from tokprune_rt.integrations import haystack

    return haystack


def documents() -> list[Any]:
    from haystack import Document

    return [Document(content=text, meta={"title": f"part {i}"}) for i, text in enumerate(TEXTS)]


def test_pipeline_run_and_restored(module: Any, minilm_folder: Path, minilm: Any) -> None:
    from haystack import Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.components.writers import DocumentWriter
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", module.TokpruneDocumentEmbedder(str(minilm_folder)))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder", "writer")
    # Restored as any pipeline is, without a word about trust; both write to one index.
    restored = Pipeline.loads(indexing.dumps())
    written = restored.run({"embedder": {"documents": documents()}})
    assert written["writer"]["documents_written"] == len(TEXTS)

    querying = Pipeline()
    querying.add_component("embedder", module.TokpruneTextEmbedder(str(minilm_folder)))
    querying.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    querying.connect("embedder.embedding", "retriever.query_embedding")
    assert querying.to_dict() == Pipeline.loads(querying.dumps()).to_dict()
    found = querying.run({"embedder": {"text": QUERY}})["retriever"]["documents"]
    assert {document.content for document in found} == {TEXTS[0], TEXTS[2]}
    expected = sorted(minilm.encode(TEXTS) @ minilm.encode(QUERY), reverse=True)[:2]
    np.testing.assert_allclose([document.score for document in found], expected, atol=1e-5)


def test_components(module: Any, minilm_folder: Path, minilm: Any, tmp_path: Path) -> None:
    embedder = module.TokpruneDocumentEmbedder(
        str(minilm_folder),
        prefix="about ",
        meta_fields_to_embed=["title", "absent"],
        embedding_separator=": ",
        progress_bar=False,
    )
    given = documents()
    embedder.warm_up()
    loaded = embedder._client
    embedder.warm_up()
    assert embedder._client is loaded
    result = embedder.run(given)
    assert [document.embedding for document in given] == [None] * len(TEXTS)
    assert [document.id for document in result["documents"]] == [d.id for d in given]
    assert result["meta"] == {"model": str(minilm_folder), "policy_hash": "off"}
    expected = minilm.encode([f"about part {i}: {text}" for i, text in enumerate(TEXTS)])
    found = [document.embedding for document in result["documents"]]
    np.testing.assert_array_equal(np.float32(found), expected)
    assert type(found[0][0]) is float
    assert embedder.run([])["documents"] == []

    path = tmp_path / "policy.json"
    path.write_text(json.dumps(preset("quantile", layers=6, q=0.4)))
    text = module.TokpruneTextEmbedder(str(minilm_folder), policy=str(path), suffix="!")
    copy = module.TokpruneTextEmbedder.from_dict(json.loads(json.dumps(text.to_dict())))
    assert copy.run(QUERY) == text.run(QUERY)
    assert text.run(QUERY)["meta"]["policy_hash"] == text.policy_hash != "off"


def test_refusals(module: Any, minilm_folder: Path) -> None:
    text, many = module.TokpruneTextEmbedder(), module.TokpruneDocumentEmbedder()
    with pytest.raises(TypeError, match="takes a str, got list"):
        text.run(["a"])
    for wrong in ("a", ["a"]):
        with pytest.raises(TypeError, match="takes a list of Document"):
            many.run(wrong)


def test_prompts(module: Any, prompted_folder: Path) -> None:
    model = tokprune_rt.load(prompted_folder)
    query = model.encode(QUERY, prompt_name="query")
    expected = model.encode(TEXTS, prompt_name="document")
    assert np.abs(query - model.encode(QUERY, prompt_name="document")).max() > 1e-3
    asked = module.TokpruneTextEmbedder(str(prompted_folder)).run(QUERY)
    np.testing.assert_array_equal(np.float32(asked["embedding"]), query)
    embedder = module.TokpruneDocumentEmbedder(str(prompted_folder), progress_bar=False)
    found = [document.embedding for document in embedder.run(documents())["documents"]]
    np.testing.assert_array_equal(np.float32(found), expected)
