"""Every route gives what the model itself gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import BuildModel
from serving import POLICY, Running, running

import tokprune_rt as tp
from tokprune_rt import Model
from tokprune_rt.policy import policy_hash
from tokprune_rt.tokenizer import Window

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Paris", "What is the capital?"]


@pytest.fixture(scope="module")
def models(tiny: BuildModel) -> dict[str, Model]:
    one = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "embedder": tp.load(tiny("bert"), policy=POLICY, threads=1),
        "reranker": tp.load(tiny("bert", "sequence-classification", **one), threads=1),
        "classifier": tp.load(tiny("roberta", "sequence-classification"), threads=1),
        "tagger": tp.load(tiny("bert", "token-classification"), threads=1),
        "reader": tp.load(tiny("bert", "question-answering"), threads=1),
    }


@pytest.fixture(scope="module")
def run(models: dict[str, Model]) -> Iterator[Running]:
    with running(models, profile="off") as found:
        yield found


def f32(values: Any) -> Any:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("profile", ["off", "default", "fast"])
def test_embed(run: Running, models: dict[str, Model], profile: str, normalize: bool) -> None:
    found = run.post("/embed", inputs=TEXTS, normalize=normalize, profile=profile)
    named = None if profile == "default" else profile
    wanted = models["embedder"].encode(TEXTS, normalize, profile=named)
    # JSON's shortest decimals read back as the same float32.
    assert f32(found).tobytes() == wanted.tobytes()
    assert f32(run.post("/embed", inputs=TEXTS[0], normalize=normalize, profile=profile)).shape == (
        1,
        64,
    )


def test_embed_all(run: Running, models: dict[str, Model]) -> None:
    found = run.post("/embed_all", inputs=TEXTS)
    model = models["embedder"]
    ids = [tokens.ids for tokens in model.tokenizer.tokenize(TEXTS)]
    for rows, wanted in zip(found, model.forward(ids, profile="off").hidden, strict=True):
        assert f32(rows).tobytes() == wanted.tobytes()
    many = run.post("/embed_all", 413, inputs=["word " * 62] * 200)
    assert many["error"] == "inputs has 12800 tokens, the limit of this route is 8192"
    refused = run.post("/embed_all", 422, inputs=TEXTS, profile="fast")
    assert "leaves" in refused["error"] and "'off'" in refused["error"]


def test_dimensions(run: Running, models: dict[str, Model]) -> None:
    found = f32(run.post("/embed", inputs=TEXTS, dimensions=10))
    full = models["embedder"].encode(TEXTS, profile="off")[:, :10]
    wanted = full / np.linalg.norm(full, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    error = run.post("/embed", 422, inputs="a", dimensions=65)
    assert error["error"] == "dimensions is 65, allowed are 1 to 64"


def test_predict(run: Running, models: dict[str, Model]) -> None:
    model = models["classifier"]
    found = run.post("/predict", inputs=[["a"], ["b", "c"]], model="classifier")
    assert found == model.predict(["a", ("b", "c")], top_k=None)
    # A list of texts is one pair, as in text-embeddings-inference.
    found = run.post("/predict", inputs=["b", "c"], model="classifier")
    assert found == model.predict(("b", "c"), top_k=None)
    assert run.post("/predict", inputs=["a"], model="classifier") == run.post(
        "/predict", inputs="a", model="classifier"
    )
    raw = run.post("/predict", inputs="a", raw_scores=True, model="classifier")
    by_label = {row["label"]: row["score"] for row in raw}
    wanted = dict(zip(model.labels, model.predict("a", raw_scores=True), strict=True))
    assert by_label == wanted
    assert "3" in run.post("/predict", 422, inputs=["a", "b", "c"], model="classifier")["error"]


def test_rerank(run: Running, models: dict[str, Model]) -> None:
    ranked = models["reranker"].rank("Where?", TEXTS)
    found = run.post("/rerank", query="Where?", texts=TEXTS, return_text=True)
    assert [row["index"] for row in found] == [row["corpus_id"] for row in ranked]
    assert [row["score"] for row in found] == [row["score"] for row in ranked]
    assert [row["text"] for row in found] == [TEXTS[row["index"]] for row in found]
    raw = run.post("/rerank", query="Where?", texts=TEXTS, raw_scores=True)
    scores = [row["score"] for row in raw]
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-np.array(scores))), [row["score"] for row in found], rtol=1e-5
    )


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_cohere_rerank(run: Running, path: str) -> None:
    tei = run.post("/rerank", query="Where?", texts=TEXTS)
    documents = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]
    found = run.post(
        path,
        model="reranker",
        query="Where?",
        documents=documents,
        top_n=2,
        return_documents=True,
    )
    rows = found["results"]
    assert [(r["index"], r["relevance_score"]) for r in rows] == [
        (r["index"], r["score"]) for r in tei[:2]
    ]
    assert rows[0]["document"] == {"text": TEXTS[rows[0]["index"]]}
    assert "either" in run.post("/rerank", 422, query="a", texts=["b"], documents=["b"])["error"]
    assert run.post(path, 400, query="", documents=["b"])["error"] == "query is empty"


def test_similarity(run: Running, models: dict[str, Model]) -> None:
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    found = run.post("/similarity", inputs=inputs)
    vectors = models["embedder"].encode(TEXTS, True, profile="off")
    np.testing.assert_allclose(found, vectors @ vectors[0], atol=1e-6)
    assert abs(found[0] - 1) < 1e-5


def test_tokenize_and_decode(run: Running, models: dict[str, Model]) -> None:
    ((first, *middle, last),) = run.post("/tokenize", inputs=TEXTS[0])
    assert first["special"] and first["start"] is None and last["special"]
    assert [TEXTS[0][t["start"] : t["stop"]].lower() for t in middle[:3]] == [
        "the",
        "quick",
        "brown",
    ]
    (bare,) = run.post("/tokenize", inputs=[TEXTS[0]], add_special_tokens=False)
    assert [t["id"] for t in bare] == [t["id"] for t in middle]
    ids = [t["id"] for t in (first, *middle, last)]
    (text,) = run.post("/decode", ids=ids)
    assert text.startswith("the quick brown fox")
    with_special = run.post("/decode", ids=[ids, ids[1:3]], skip_special_tokens=False)
    assert with_special[0].startswith("[CLS]") and with_special[1] == "the quick"
    limit = models["embedder"].config.vocab_size
    assert str(limit - 1) in run.post("/decode", 422, ids=[limit])["error"]
    assert run.post("/decode", 400, ids=[])["error_type"] == "Empty"


def test_tag(run: Running, models: dict[str, Model]) -> None:
    model = models["tagger"]
    for strategy in ("simple", "none"):
        found = run.post("/tag", inputs=TEXTS, aggregation_strategy=strategy, ignore_labels=["O"])
        assert found == model.tag(TEXTS, aggregation_strategy=strategy)
    assert run.post("/tag", inputs=TEXTS[0]) == model.tag(TEXTS[0], aggregation_strategy="simple")
    assert "simple" in run.post("/tag", 422, inputs="a", aggregation_strategy="max")["error"]


def test_answer(run: Running, models: dict[str, Model]) -> None:
    model = models["reader"]
    context = " ".join(TEXTS * 10)
    assert run.post("/answer", question="Who?", context=context) == model.answer("Who?", context)
    found = run.post("/answer", question="Who?", context=context, top_k=3, doc_stride=8)
    assert found == model.answer("Who?", context, top_k=3, doc_stride=8)
    assert run.post("/answer", 422, question=" ", context="x")["error"] == "question is empty"
    for name, value in (("top_k", 101), ("max_answer_len", 257), ("doc_stride", 64)):
        error = run.post("/answer", 422, question="Who?", context="x", **{name: value})["error"]
        assert name in error, error


def test_windows_are_counted_before_they_are_made(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that fills the window leaves room for one new token in each."""
    model = {"reader": models["reader"]}
    asked = {"question": "a " * 60, "context": "b " * 100}
    made: list[Any] = []

    def make(*arguments: Any) -> Window:
        made.append(arguments)
        return Window(*arguments)

    monkeypatch.setattr("tokprune_rt.tokenizer.Window", make)
    with running(model, max_tokens=6399) as run:
        error = run.post("/answer", 413, **asked)["error"]
        assert "6400 tokens in 100 windows, the limit is 6399" in error and not made
        played = run.post("/playground", text=asked["question"], documents=[asked["context"]])
        assert len(played["items"]) == len(made) == 1


def test_root_follows_the_task(run: Running) -> None:
    assert run.post("/", inputs=TEXTS) == run.post("/embed", inputs=TEXTS)
    similarity = {"source_sentence": "a", "sentences": ["b"]}
    assert run.post("/", inputs=similarity) == run.post("/similarity", inputs=similarity)
    single = run.post("/", inputs="a", model="classifier")
    assert single == run.post("/predict", inputs="a", model="classifier")
    piped = run.post("/", inputs="a", model="classifier", parameters={"top_k": 2})
    assert piped == [single[:2]]
    everything = run.post("/", inputs="a", model="classifier", parameters={"top_k": None})
    assert everything == [single]
    for top_k in ("x", -1, 0, 1.5, True):
        parameters = {"top_k": top_k}
        error = run.post("/", 422, inputs="a", model="classifier", parameters=parameters)["error"]
        assert error.startswith("top_k: Input should be")
    assert run.post("/", query="a", texts=["b"], model="reranker") == run.post(
        "/rerank", query="a", texts=["b"]
    )
    asked = {"question": "Who?", "context": TEXTS[0]}
    assert run.post("/", inputs=asked, model="reader") == run.post("/answer", **asked)
    tagged = run.post(
        "/", inputs=TEXTS[0], model="tagger", parameters={"aggregation_strategy": "none"}
    )
    assert tagged == run.post("/tag", inputs=TEXTS[0], aggregation_strategy="none")


def test_truncation(run: Running, models: dict[str, Model]) -> None:
    long = " ".join(f"word {i}" for i in range(100))
    model = models["embedder"]
    assert f32(run.post("/embed", inputs=long)).tobytes() == (
        model.encode([long], True, profile="off").tobytes()
    )
    error = run.post("/embed", 413, inputs=long, truncate=False)
    assert error["error_type"] == "Validation" and "the limit is 64" in error["error"]
    ids = model.tokenizer.raw_encodings([long], special_tokens=False)[0].ids
    kept = model.tokenizer.tokenize([long], direction="left")[0].ids
    assert list(kept[1:-1]) == ids[-62:]
    left = run.post("/embed", inputs=long, truncation_direction="Left")
    wanted = model.forward([kept], profile="off").pooled
    assert wanted is not None
    np.testing.assert_allclose(f32(left)[0], wanted[0] / np.linalg.norm(wanted[0]), atol=1e-6)


def test_headers_tell_what_it_cost(run: Running, models: dict[str, Model]) -> None:
    response = run.client.post("/embed", json={"inputs": TEXTS, "profile": "fast"})
    model = models["embedder"]
    ids = [tokens.ids for tokens in model.tokenizer.tokenize(TEXTS)]
    stats = model.forward(ids, profile="fast").stats
    headers = response.headers
    assert headers["x-tokprune-model"] == "embedder"
    assert headers["x-tokprune-profile"] == "fast"
    assert headers["x-tokprune-policy"] == model.policy_hash[:12]
    assert int(headers["x-tokprune-tokens"]) == stats.tokens_in
    assert int(headers["x-compute-tokens"]) == stats.tokens_in
    assert int(headers["x-tokprune-kept-tokens"]) == stats.kept_per_layer[-1] < stats.tokens_in
    assert int(headers["x-compute-characters"]) == sum(map(len, TEXTS))
    assert float(headers["x-inference-time"]) > 0


def test_requests_do_not_hash_the_policy(tiny: BuildModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tp.load(tiny("bert"), policy=POLICY, threads=1)
    hashed: list[Any] = []

    def digest(policy: Any) -> str:
        hashed.append(policy)
        return policy_hash(policy)

    monkeypatch.setattr("tokprune_rt.model.policy_hash", digest)
    with running({"m": model}) as run:
        assert len(hashed) == 1
        for _ in range(2):
            headers = run.client.post("/embed", json={"inputs": "a"}).headers
            assert headers["x-tokprune-policy"] == model.policy_hash[:12]
        assert run.client.get("/info").json()["policy_hash"] == model.policy_hash
    assert hashed == [model.policy]


def test_info_and_models(run: Running, models: dict[str, Model]) -> None:
    info = run.client.get("/info").json()
    assert info["model_id"] == "embedder" and info["max_input_length"] == 64
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert info["profiles"] == ["default", "off", "fast", "faster"]
    kinds = [next(iter(entry["model_type"])) for entry in info["models"]]
    assert kinds == [
        "embedding",
        "reranker",
        "classifier",
        "token_classification",
        "question_answering",
    ]
    listed = run.client.get("/v1/models").json()
    assert [entry["id"] for entry in listed["data"]] == list(models)


def test_openapi_describes_every_route(run: Running) -> None:
    document = run.client.get("/openapi.json").json()
    for path in ("/embed", "/rerank", "/v1/embeddings", "/tag", "/answer", "/metrics", "/"):
        assert path in document["paths"]
    embed = document["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]
    name = embed["schema"]["$ref"].rpartition("/")[2]
    properties = document["components"]["schemas"][name]["properties"]
    assert {"inputs", "normalize", "truncate", "profile", "model"} <= set(properties)


def test_routes_need_a_model_that_can(run: Running) -> None:
    error = run.post("/embed", 422, inputs="a", model="tagger")
    assert "token-classification" in error["error"]
    error = run.post("/rerank", 422, query="a", texts=["b"], model="classifier")
    assert "one label" in error["error"]
    error = run.post("/embed", 404, inputs="a", model="nothing")
    assert error["error_type"] == "NotFound" and "embedder, reranker" in error["error"]
    error = run.post("/embed", 422, inputs="a", profile="slow")
    assert "default, off, fast" in error["error"]
    assert "none" in run.post("/embed", 422, inputs="a", prompt_name="query")["error"]
