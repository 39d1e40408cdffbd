"""The playground's route and page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import BuildModel
from serving import POLICY, Running, running

import tokprune_rt as tp
from tokprune_rt import Model
from tokprune_rt.policy import preset

TEXT = "The quick brown fox jumps over the lazy dog and the cat."
DOCUMENTS = ["Paris is the capital of France.", "A dog sleeps."]
VOID = {"meta", "link", "input", "br"}


@pytest.fixture(scope="module")
def models(tiny: BuildModel) -> dict[str, Model]:
    return {
        "embedder": tp.load(tiny("bert"), policy=POLICY, threads=1),
        "merger": tp.load(tiny("bert"), policy=preset("tome", layers=3, ratio=0.7), threads=1),
        "classifier": tp.load(tiny("roberta", "sequence-classification"), threads=1),
        "tagger": tp.load(tiny("bert", "token-classification"), threads=1),
        "reader": tp.load(tiny("bert", "question-answering"), threads=1),
    }


@pytest.fixture(scope="module")
def run(models: dict[str, Model]) -> Iterator[Running]:
    with running(models) as found:
        yield found


def test_which_token_left_where(run: Running, models: dict[str, Model]) -> None:
    model = models["embedder"]
    found = run.post("/playground", text=TEXT, documents=DOCUMENTS, profile="fast")
    texts = [TEXT, *DOCUMENTS]
    ids = [tokens.ids for tokens in model.tokenizer.tokenize(texts)]
    wanted = model.forward(ids, profile="fast", trace=True)
    assert wanted.trace is not None
    assert found["kept_per_layer"] == list(wanted.stats.kept_per_layer)
    assert found["tokens"] == wanted.stats.tokens_in > found["kept"]
    assert found["kept"] == wanted.stats.kept_per_layer[-1]
    for index, item in enumerate(found["items"]):
        for layer in range(3):
            alive = [
                place
                for place, token in enumerate(item)
                if token["left"] is None or token["left"] > layer
            ]
            assert alive == sorted(wanted.trace.kept[layer][index].tolist())
    first = found["items"][0]
    assert [t["text"] for t in first[:3]] == ["[CLS]", "the", "quick"]
    assert [t["special"] for t in first[:3]] == [True, False, False]
    assert found["pruned"]["macs"] == wanted.stats.macs < found["dense"]["macs"]
    assert found["dense"]["macs"] == wanted.stats.macs_dense
    for side, profile in (("pruned", "fast"), ("dense", "off")):
        part = found[side]
        assert part["profile"] == profile and part["ms"] > 0
        vectors = model.encode(texts, True, profile=profile)
        np.testing.assert_allclose(
            part["result"]["similarities"], vectors[1:] @ vectors[0], atol=1e-6
        )
        raw = np.array(part["result"]["vector"], dtype=np.float32)
        assert raw.tobytes() == model.encode(TEXT, profile=profile).tobytes()


def test_which_token_merged_into_which(run: Running, models: dict[str, Model]) -> None:
    model = models["merger"]
    (item,) = run.post("/playground", text=TEXT, model="merger")["items"]
    (tokens,) = model.tokenizer.tokenize([TEXT])
    wanted = model.forward([tokens.ids], trace=True)
    assert wanted.trace is not None
    rows = wanted.trace.rows[-1][0]
    assert (rows != np.arange(len(rows))).any()
    for position, (token, row) in enumerate(zip(item, rows, strict=True)):
        assert token["into"] == (None if row == position else item[row]["text"])
        assert (token["left"] is None) == (row == position)


def test_every_task(run: Running, models: dict[str, Model]) -> None:
    found = run.post("/playground", text=TEXT, model="classifier")["dense"]["result"]
    assert found["labels"] == [models["classifier"].predict(TEXT, top_k=None)]
    found = run.post("/playground", text=TEXT, documents=DOCUMENTS, model="classifier")
    pairs = [(TEXT, document) for document in DOCUMENTS]
    assert found["pruned"]["result"]["labels"] == models["classifier"].predict(pairs, top_k=None)
    found = run.post("/playground", text=TEXT, model="tagger")["dense"]["result"]
    assert found["entities"] == models["tagger"].tag(TEXT, aggregation_strategy="simple")
    found = run.post("/playground", text="Who?", documents=[TEXT], model="reader")
    assert found["dense"]["result"]["answer"] == models["reader"].answer("Who?", TEXT)
    assert found["kept"] == found["tokens"]
    error = run.post("/playground", 422, text="Who?", model="reader")
    assert error["error"] == "a question needs one document, its context"
    assert run.post("/playground", 400, text=" ")["error"] == "text is empty"


class Checker(HTMLParser):
    """Elements that are closed in order, ids that occur once, labels that point somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.labelled: set[str] = set()
        self.fields: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.stack.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "label":
            self.labelled.add(str(values["for"]))
        if tag in ("textarea", "select", "input"):
            self.fields.add(str(values["id"]))
        assert not str(values.get("src") or values.get("href") or "").startswith(("http", "//"))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_the_page(run: Running) -> None:
    response = run.client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    checker = Checker()
    checker.feed(response.text)
    checker.close()
    assert not checker.stack
    assert len(checker.ids) == len(set(checker.ids))
    # Every field has a label, every element that the script asks for exists.
    assert checker.fields <= checker.labelled <= set(checker.ids)
    assert set(re.findall(r'\$\("([\w-]+)"\)', response.text)) <= set(checker.ids)
    assert "http://" not in response.text and "https://" not in response.text


def test_without_a_playground(models: dict[str, Model]) -> None:
    with running({"m": models["embedder"]}, playground=False) as run:
        assert run.client.get("/").status_code == 405
        assert run.client.post("/playground", json={"text": "a"}).status_code == 404
        assert run.post("/", inputs="a")
