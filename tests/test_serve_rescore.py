"""Pruned for all, exact for the best: ``rescore`` of the server's /rerank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import BuildModel
from serving import EARLY, Parallel, Running, running, wait_for

import tokprune_rt as tp
from tokprune_rt import Model

QUERY = "Where does the quick brown fox live?"
TEXTS = [
    "The quick brown fox jumps over the lazy dog and lives in a wood.",
    "Paris is the capital of France, and a large city on a river.",
    "A dog sleeps in the sun while the cat looks for a mouse.",
    "What is the capital of a country that has no city?",
]


@pytest.fixture(scope="module")
def model(tiny: BuildModel) -> Model:
    one = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return tp.load(tiny("bert", "sequence-classification", **one), policy=EARLY, threads=1)


@pytest.fixture(scope="module")
def run(model: Model) -> Iterator[Running]:
    with running({"m": model}) as found:
        yield found


@pytest.mark.parametrize("profile", ["faster", "off"])
@pytest.mark.parametrize("rescore", [1, 2, 9])
def test_it_is_what_rank_gives(run: Running, model: Model, profile: str, rescore: int) -> None:
    ranked = model.rank(QUERY, TEXTS, profile=profile, rescore=rescore)
    plain = model.rank(QUERY, TEXTS, profile=profile)
    assert (ranked != plain) == (profile != "off")
    wanted = [(row["corpus_id"], row["score"]) for row in ranked]
    asked = {"query": QUERY, "profile": profile, "rescore": rescore}
    found = run.post("/rerank", texts=TEXTS, **asked)
    assert [(row["index"], row["score"]) for row in found] == wanted
    assert run.post("/", texts=TEXTS, **asked) == found
    found = run.post("/v2/rerank", documents=TEXTS, top_n=3, **asked)["results"]
    assert [(row["index"], row["relevance_score"]) for row in found] == wanted[:3]
    raw = run.post("/rerank", texts=TEXTS, raw_scores=True, **asked)
    assert [row["index"] for row in raw] == [index for index, _ in wanted]


def test_the_headers_count_both(run: Running) -> None:
    asked = {"query": QUERY, "texts": TEXTS, "profile": "fast"}
    once = run.client.post("/rerank", json=asked).headers
    twice = run.client.post("/rerank", json=asked | {"rescore": 4}).headers
    assert once["x-tokprune-profile"] == twice["x-tokprune-profile"] == "fast"
    tokens, kept = (int(once[f"x-tokprune-{name}tokens"]) for name in ("", "kept-"))
    assert int(twice["x-tokprune-tokens"]) == 2 * tokens
    # The exact pass keeps every token, although its last layer computes first tokens only.
    assert 2 * len(TEXTS) < kept < tokens
    assert int(twice["x-tokprune-kept-tokens"]) == kept + tokens


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_bad_counts(run: Running, wrong: object) -> None:
    error = run.post("/rerank", 422, query=QUERY, texts=TEXTS, rescore=wrong)
    assert error["error"].startswith("rescore")


def test_what_was_accepted_is_not_refused_halfway(model: Model) -> None:
    with running({"m": model}) as run:
        gate = run.gate()
        requests = Parallel(run)
        asked = {"query": QUERY, "texts": TEXTS, "profile": "fast", "rescore": 2}
        requests.post("/rerank", **asked)
        wait_for(lambda: gate.entered == 1)
        (served,) = run.server.registry
        served.worker._patience = -1.0  # from here on everything is too much
        assert run.post("/rerank", 429, **asked)["error_type"] == "Overloaded"
        gate.release()
        assert [r.status_code for r in requests.join().values()] == [200]
        assert gate.calls[0] != gate.calls[1] and len(gate.calls) == 2
