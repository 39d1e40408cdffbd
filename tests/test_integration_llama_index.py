"""LlamaIndex: an index query with this package's embedding model."""

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

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def model(minilm_folder: Path) -> Any:
    pytest.importorskip("llama_index.core")
    from tokprune_rt.integrations.llama_index import TokpruneEmbedding

    return TokpruneEmbedding(model_name=str(minilm_folder), embed_batch_size=3)


def test_index_query(model: Any, minilm: Any) -> None:
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(TEXTS)]
    index = VectorStoreIndex(nodes, embed_model=model)
    found = index.as_retriever(similarity_top_k=2).retrieve(QUERY)
    assert {node.node_id for node in found} == {"0", "2"}
    query, documents = minilm.encode(QUERY), minilm.encode(TEXTS)
    expected = sorted(documents @ query, reverse=True)[:2]
    np.testing.assert_allclose([node.score for node in found], expected, atol=1e-5)


def test_forms(model: Any, minilm: Any) -> None:
    documents = model.get_text_embedding_batch(TEXTS)
    query = model.get_query_embedding(QUERY)
    assert {type(documents), type(documents[0]), type(query)} == {list}
    assert type(query[0]) is float
    np.testing.assert_allclose(documents, minilm.encode(TEXTS), atol=1e-6)
    np.testing.assert_allclose(query, minilm.encode(QUERY), atol=1e-6)
    assert model.get_text_embedding(TEXTS[0]) == documents[0]
    assert asyncio.run(model.aget_query_embedding(QUERY)) == query
    assert asyncio.run(model.aget_text_embedding_batch(TEXTS)) == documents


def test_serialisation(model: Any, minilm_folder: Path, tmp_path: Path) -> None:
    kind = type(model)
    path = tmp_path / "policy.json"
    import json

    path.write_text(json.dumps(preset("quantile", layers=6, q=0.4)))
    pruned = kind(model_name=str(minilm_folder), policy=str(path), normalize=False)
    assert pruned.policy_hash != model.policy_hash == "off"
    expected = pruned.get_text_embedding_batch(TEXTS)
    assert np.abs(np.subtract(expected, model.get_text_embedding_batch(TEXTS))).max() > 1e-3
    stored = json.loads(json.dumps(pruned.to_dict()))
    assert stored["class_name"] == "TokpruneEmbedding"
    for copy in (kind.from_dict(stored), pickle.loads(pickle.dumps(pruned))):
        assert copy.get_text_embedding_batch(TEXTS) == expected
        assert copy.policy_hash == pruned.policy_hash


def test_prompts(model: Any, prompted_folder: Path) -> None:
    direct = tokprune_rt.load(prompted_folder)
    query = direct.encode(QUERY, True, prompt_name="query")
    expected = direct.encode(TEXTS, True, prompt_name="document")
    assert np.abs(query - direct.encode(QUERY, True, prompt_name="document")).max() > 1e-3
    prompted = type(model)(model_name=str(prompted_folder))
    np.testing.assert_array_equal(np.float32(prompted.get_query_embedding(QUERY)), query)
    found = prompted.get_text_embedding_batch(TEXTS)
    np.testing.assert_array_equal(np.float32(found), expected)
