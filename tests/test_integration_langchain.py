"""LangChain: a vector store search with this package's embeddings."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import QUERY, TEXTS

import tokprune_rt
from tokprune_rt.policy import preset

pytest.importorskip("langchain_core")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def embeddings(minilm_folder: Path) -> Any:
    from tokprune_rt.integrations.langchain import TokpruneEmbeddings

    return TokpruneEmbeddings(model_name=str(minilm_folder))


def test_vector_store_search(embeddings: Any, minilm: Any) -> None:
    from langchain_core.documents import Document
    from langchain_core.vectorstores import InMemoryVectorStore

    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(text, metadata={"at": i}) for i, text in enumerate(TEXTS)])
    found = store.similarity_search_with_score(QUERY, k=2)
    assert {document.metadata["at"] for document, _ in found} == {0, 2}
    query, documents = minilm.encode(QUERY), minilm.encode(TEXTS)
    expected = sorted(documents @ query, reverse=True)[:2]
    np.testing.assert_allclose([score for _, score in found], expected, atol=1e-5)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    assert retriever.invoke("money").pop().page_content == TEXTS[1]


def test_forms(embeddings: Any, minilm: Any) -> None:
    documents, query = embeddings.embed_documents(TEXTS), embeddings.embed_query(QUERY)
    assert {type(documents), type(documents[0]), type(query)} == {list}
    assert {type(documents[0][0]), type(query[0])} == {float}
    np.testing.assert_array_equal(np.float32(documents), minilm.encode(TEXTS))
    np.testing.assert_array_equal(np.float32(query), minilm.encode(QUERY))
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == documents
    assert asyncio.run(embeddings.aembed_query(QUERY)) == query


def test_settings(embeddings: Any, minilm_folder: Path) -> None:
    kind = type(embeddings)
    policy = preset("quantile", layers=6, q=0.4)
    pruned = kind(
        model=str(minilm_folder),
        policy=policy,
        encode_kwargs={"truncate_dim": 32, "normalize_embeddings": True},
        query_encode_kwargs={"truncate_dim": 16},
        model_kwargs={"device": "cpu"},
    )
    direct = tokprune_rt.load(minilm_folder, policy=policy)
    assert pruned.policy_hash == direct.policy_hash != embeddings.policy_hash
    expected = direct.encode(TEXTS)[:, :32]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(pruned.embed_documents(TEXTS), expected, atol=1e-6)
    assert len(pruned.embed_query(QUERY)) == 16
    copy = pickle.loads(pickle.dumps(pruned))
    assert copy.embed_documents(TEXTS) == pruned.embed_documents(TEXTS)
    again = kind(**pruned.model_dump())
    assert again.embed_documents(TEXTS) == pruned.embed_documents(TEXTS)
    with pytest.raises(ValueError, match="colour"):
        kind(model=str(minilm_folder), colour="red")
    with pytest.raises(ValueError, match="inputs\\[1\\] must be a str, got int"):
        embeddings.embed_documents(["a", 1])


def test_prompts(embeddings: Any, prompted_folder: Path) -> None:
    model = tokprune_rt.load(prompted_folder)
    query = model.encode(QUERY, prompt_name="query")
    expected = model.encode(TEXTS, prompt_name="document")
    assert np.abs(query - model.encode(QUERY, prompt_name="document")).max() > 1e-3
    prompted = type(embeddings)(model=str(prompted_folder))
    np.testing.assert_array_equal(np.float32(prompted.embed_query(QUERY)), query)
    np.testing.assert_array_equal(np.float32(prompted.embed_documents(TEXTS)), expected)
