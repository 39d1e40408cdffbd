"""Clients of OpenAI and of text-embeddings-inference, unmodified."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from conftest import BuildModel
from serving import Running, running

import tokprune_rt as tp
from tokprune_rt import Model

KEY = "sk-test"
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Paris", "What is the capital?"]


@pytest.fixture(scope="module")
def models(tiny: BuildModel) -> dict[str, Model]:
    return {
        "embedder": tp.load(tiny("bert"), threads=1),
        "classifier": tp.load(tiny("roberta", "sequence-classification"), threads=1),
        "tagger": tp.load(tiny("bert", "token-classification"), threads=1),
        "reader": tp.load(tiny("bert", "question-answering"), threads=1),
    }


@pytest.fixture(scope="module")
def run(models: dict[str, Model]) -> Iterator[Running]:
    with running(models, api_key=KEY) as found:
        found.client.headers["authorization"] = f"Bearer {KEY}"
        yield found


@pytest.fixture
def openai(run: Running) -> Iterator[Any]:
    library = pytest.importorskip("openai")
    with library.OpenAI(base_url=f"{run.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_embeddings(openai: Any, models: dict[str, Model]) -> None:
    # The library asks for base64 unless told otherwise.
    wanted = models["embedder"].encode(TEXTS, True)
    for options in ({}, {"encoding_format": "float"}):
        found = openai.embeddings.create(model="embedder", input=TEXTS, **options)
        rows = np.array([item.embedding for item in found.data], dtype=np.float32)
        assert rows.tobytes() == wanted.tobytes()
    assert [item.index for item in found.data] == [0, 1, 2]
    assert found.model == "embedder"
    tokens = sum(map(len, models["embedder"].tokenizer.tokenize(TEXTS)))
    assert found.usage.prompt_tokens == found.usage.total_tokens == tokens
    short = openai.embeddings.create(model="embedder", input=TEXTS[0], dimensions=8)
    vector = np.array(short.data[0].embedding)
    assert len(vector) == 8 and abs(np.linalg.norm(vector) - 1) < 1e-6
    extra = openai.embeddings.create(model="embedder", input="a", extra_body={"profile": "off"})
    assert len(extra.data) == 1


def test_openai_models(openai: Any, models: dict[str, Model]) -> None:
    assert [entry.id for entry in openai.models.list()] == list(models)


def test_openai_errors(openai: Any, run: Running) -> None:
    library = pytest.importorskip("openai")
    with pytest.raises(library.NotFoundError) as missing:
        openai.embeddings.create(model="text-embedding-3", input="a")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    for nothing in ([], ""):
        with pytest.raises(library.BadRequestError, match="input is empty"):
            openai.embeddings.create(model="embedder", input=nothing)
    with pytest.raises(library.BadRequestError, match="dimensions is 999"):
        openai.embeddings.create(model="embedder", input="a", dimensions=999)
    with pytest.raises(library.BadRequestError, match="encoding_format"):
        openai.embeddings.create(model="embedder", input="a", encoding_format="int8")
    for ids in ([1, 2], [[1, 2], [3]]):
        with pytest.raises(library.BadRequestError, match="check_embedding_ctx_length=False"):
            openai.embeddings.create(model="embedder", input=ids)
    with pytest.raises(library.AuthenticationError):
        openai.with_options(api_key="wrong").embeddings.create(model="embedder", input="a")


def test_base64_is_little_endian_float32(run: Running, models: dict[str, Model]) -> None:
    found = run.post("/v1/embeddings", input="a", encoding_format="base64")
    data = base64.b64decode(found["data"][0]["embedding"])
    assert data == models["embedder"].encode("a", True).astype("<f4").tobytes()
    assert run.post("/embeddings", input="a", encoding_format="base64") == found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub's library, which must reach loopback though the tests are offline."""
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(library.constants, "HF_HUB_OFFLINE", False)
    return library


def test_inference_client_embeddings(hub: Any, run: Running, models: dict[str, Model]) -> None:
    with hub.InferenceClient(run.url, token=KEY) as client:
        for text in (TEXTS[0], TEXTS):
            found = client.feature_extraction(text, normalize=True)
            wanted = models["embedder"].encode([text] if isinstance(text, str) else text, True)
            assert found.tobytes() == wanted.tobytes()
        scores = client.sentence_similarity(TEXTS[0], TEXTS[1:])
        vectors = models["embedder"].encode(TEXTS, True)
        np.testing.assert_allclose(scores, vectors[1:] @ vectors[0], atol=1e-6)
        with pytest.raises(hub.errors.HfHubHTTPError, match="413"):
            client.feature_extraction("word " * 100, truncate=False)


@pytest.mark.parametrize("name", ["classifier", "tagger", "reader"])
def test_inference_client_tasks(hub: Any, models: dict[str, Model], name: str) -> None:
    model = models[name]
    with running({name: model}) as run, hub.InferenceClient(run.url) as client:
        if name == "classifier":
            found = client.text_classification(TEXTS[0], top_k=2)
            wanted = model.predict(TEXTS[0], top_k=2)
            assert [(f.label, f.score) for f in found] == [(w["label"], w["score"]) for w in wanted]
        elif name == "tagger":
            found = client.token_classification(TEXTS[0], aggregation_strategy="simple")
            wanted = model.tag(TEXTS[0], aggregation_strategy="simple")
            assert [(f.entity_group, f.start) for f in found] == [
                (w["entity_group"], w["start"]) for w in wanted
            ]
        else:
            found = client.question_answering(question="Who?", context=TEXTS[0])
            wanted = model.answer("Who?", TEXTS[0])
            assert (found.answer, found.score) == (wanted["answer"], wanted["score"])


def same(found: Any, wanted: Any) -> bool:
    return np.array(found, dtype=np.float32).tobytes() == wanted.tobytes()


# These projects warn of themselves while they are imported.
@pytest.mark.filterwarnings("ignore")
def test_langchain_openai(run: Running, models: dict[str, Model]) -> None:
    library = pytest.importorskip("langchain_openai")
    embeddings = library.OpenAIEmbeddings(
        model="embedder", base_url=f"{run.url}/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    wanted = models["embedder"].encode(TEXTS, True)
    assert same(embeddings.embed_documents(TEXTS), wanted)
    assert same(embeddings.embed_query(TEXTS[0]), wanted[0])


@pytest.mark.filterwarnings("ignore")
def test_langchain_endpoint(hub: Any, run: Running, models: dict[str, Model]) -> None:
    library = pytest.importorskip("langchain_huggingface")
    if int(version("langchain-huggingface").split(".")[0]) >= 1:
        pytest.skip("langchain-huggingface takes no URLs since 1.0")
    embeddings = library.HuggingFaceEndpointEmbeddings(model=run.url, huggingfacehub_api_token=KEY)
    wanted = models["embedder"].encode(TEXTS, True)
    assert same(embeddings.embed_documents(TEXTS), wanted)
    assert same(embeddings.embed_query(TEXTS[0]), wanted[0])


@pytest.mark.filterwarnings("ignore")
def test_llama_index(run: Running, models: dict[str, Model]) -> None:
    library = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    embeddings = library.TextEmbeddingsInference(
        model_name="embedder",
        base_url=run.url,
        auth_token=KEY,
        text_instruction="",
        query_instruction="",
    )
    wanted = models["embedder"].encode(TEXTS, True)
    assert same(embeddings.get_text_embedding_batch(TEXTS), wanted)
    assert same(embeddings.get_query_embedding(TEXTS[0]), wanted[0])
    assert same(asyncio.run(embeddings.aget_text_embedding_batch(TEXTS)), wanted)


@pytest.mark.filterwarnings("ignore")
def test_llama_index_openai(run: Running, models: dict[str, Model]) -> None:
    library = pytest.importorskip("llama_index.embeddings.openai")
    embeddings = library.OpenAIEmbedding(
        model_name="embedder", api_base=f"{run.url}/v1", api_key=KEY
    )
    wanted = models["embedder"].encode(TEXTS, True)
    assert same(embeddings.get_text_embedding_batch(TEXTS), wanted)
    assert same(embeddings.get_query_embedding(TEXTS[0]), wanted[0])
