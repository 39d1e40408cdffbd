"""Rankings: metrics over queries, learning with the query protected, and rescoring the best."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import run

import tokprune_rt
from tokprune_rt.policy import load_policy, policy_hash
from tokprune_rt.train import Examples, Run, Schedule, Settings, evaluate, finetune, train_ltp
from tokprune_rt.train.data import tokenizer_of
from tokprune_rt.train.ranking import average_precision, per_query, reciprocal_rank
from tokprune_rt.train.tasks import RankTask, TextTask

ONE: dict[str, Any] = {"id2label": {0: "value"}, "label2id": {"value": 0}}
QUERY = "Who wrote the first program?"
TOPICS = ["fox", "dog", "cat", "film"]


def pairs(queries: int, seed: int) -> Examples:
    """A document answers every query that says it is good."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(queries):
        query = f"where is the {TOPICS[number % 4]} " + "the " * (number // 4 % 8)
        for place in range(8):
            words = list(rng.choice(["the", "weather", "was", "warm", "on", "a", "mat"], 6))
            words[int(rng.integers(6))] = "bad" if place % 4 else "good"
            texts.append((query, " ".join(words)))
            labels.append("0" if place % 4 else "1")
    return Examples(list(texts), labels)


def run_of(source: Path | str, out: Path, **changes: Any) -> Run:
    settings = Settings(batch_size=16)
    given = {"metric": "map", "settings": settings, "say": lambda _: None, **changes}
    return Run(str(source), out, pairs(32, 1), pairs(16, 2), **given)


def policy(**changes: Any) -> dict[str, Any]:
    """Half of the document leaves, by what the query looks at."""
    return {
        "format": "token-policy",
        "version": 1,
        "layers": 3,
        "protect": {"first": True, "segment": 0},
        "scores": {"looked": {"kind": "attn_col", "query": {"segment": 0}}},
        "steps": [
            {
                "layers": [0, 1],
                "site": "mid",
                "score": "looked",
                "select": {"kind": "quantile", "q": 0.5},
                "action": {"kind": "drop"},
            }
        ],
        **changes,
    }


def test_metrics_of_an_order() -> None:
    assert average_precision(np.array([1, 0, 1, 0], bool)) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([0, 0, 1], bool)) == pytest.approx(1 / 3)
    assert reciprocal_rank(np.array([0, 1, 1], bool)) == 0.5


def test_queries_that_say_nothing_do_not_count() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.4, 0.3, 0.2])
    relevant = np.array([1, 0, 0, 0, 1, 1])
    queries = np.array([0, 0, 1, 1, 2, 2])
    assert per_query("mrr", scores, relevant, queries).tolist() == [0.5]
    with pytest.raises(ValueError, match="map needs a query with a relevant document"):
        per_query("map", scores, np.zeros(6), queries)


def test_equal_scores_are_taken_at_their_worst() -> None:
    equal, relevant = np.zeros(4), np.array([1, 0, 0, 0])
    assert per_query("mrr", equal, relevant, np.zeros(4)).tolist() == [0.25]


def test_what_a_ranking_needs(tiny: Any, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tiny("bert"))
    one_sided = Examples([("a", "b"), ("a", "c")], ["1", "1"])
    said: list[str] = []
    run = dataclasses.replace(
        run_of(tiny("bert"), tmp_path / "out", say=said.append), dev=one_sided
    )
    with pytest.raises(ValueError, match="found 1 query, none with both"):
        finetune(run)
    assert not said  # before anything is learned
    task = RankTask((), "map")
    with pytest.raises(ValueError, match=r"needs pairs of a query and a document.*\(line 2\)"):
        task.encode(Examples([("a", "b"), "a"], ["1", "0"], ["line 1", "line 2"]), tokenizer)
    with pytest.raises(ValueError, match="labels from 0 to 1, found '3'"):
        task.encode(Examples([("a", "b")], ["3"]), tokenizer)
    with pytest.raises(ValueError, match="unknown metric 'ndcg' of a ranking; known: map, mrr"):
        RankTask((), "ndcg")
    with pytest.raises(ValueError, match=r"unknown metric 'ndcg'; known: .*map, mrr"):
        TextTask((), "ndcg")


@pytest.fixture(scope="module")
def reranker(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("ranking") / "dense"
    result = finetune(run_of(tiny("bert"), folder), epochs=8, rate=3e-3)
    assert result.scores["dense"] > 75
    return folder


def test_a_ranking_is_learned_and_evaluated(reranker: Path) -> None:
    model = tokprune_rt.load(reranker)
    assert len(model.labels) == 1
    found = {
        metric: evaluate(reranker, pairs(16, 2), metric=metric, rounds=1).rows[0].score
        for metric in ("map", "mrr")
    }
    assert 75 < found["map"] <= found["mrr"] <= 100
    scores = [entry["score"] for entry in model.rank("where is the fox", ["a fox", "a dog"])]
    assert all(0 <= score <= 1 for score in scores)


def test_a_classifier_is_no_ranking(tiny: Any, tmp_path: Path) -> None:
    classifier = tiny("bert", "sequence-classification")
    with pytest.raises(ValueError, match="outputs, which is no ranking"):
        train_ltp(run_of(classifier, tmp_path / "out"))


def test_fine_tuning_under_a_policy(reranker: Path, tmp_path: Path) -> None:
    result = finetune(run_of(reranker, tmp_path / "pruned"), epochs=1, policy=policy())
    (off, pruned) = evaluate(result.folder, pairs(16, 2), metric="map", rounds=1).rows
    assert pruned.macs < 0.9 < off.macs
    assert pruned.score == pytest.approx(result.scores["pruned"], abs=0.1)
    by_chance = policy(scores={"looked": {"kind": "random"}})
    with pytest.raises(ValueError, match="score 'random' is not available in training"):
        finetune(run_of(reranker, tmp_path / "no"), policy=by_chance)


def test_from_the_shell(reranker: Path, tmp_path: Path) -> None:
    for name, data in (("train", pairs(4, 1)), ("dev", pairs(4, 2))):
        rows = [
            {"query": text[0], "document": text[1], "label": label}
            for text, label in zip(data.texts, data.labels, strict=True)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "policy.json").write_text(json.dumps(policy()))
    columns = ["--text", "query", "--pair", "document", "--metric", "map"]
    files = ["--train", tmp_path / "train.jsonl", "--dev", tmp_path / "dev.jsonl"]
    under = ["--epochs", "1", "--policy", tmp_path / "policy.json"]
    result = run("finetune", reranker, tmp_path / "out", *files, *columns, *under)
    assert "dev: pruned" in result.output
    assert tokprune_rt.load(tmp_path / "out").policy_hash == policy_hash(load_policy(policy()))
    data_file = ["--data", tmp_path / "dev.jsonl", "--json", tmp_path / "e.json"]
    run("evaluate", tmp_path / "out", *data_file, *columns)
    assert json.loads((tmp_path / "e.json").read_text())["metric"] == "map"


def test_learned_pruning_protects_the_query(reranker: Path, tmp_path: Path) -> None:
    schedule = Schedule(epochs=1, hard_epochs=1)
    train_ltp(run_of(reranker, tmp_path / "ltp"), target=0.6, schedule=schedule)
    model = tokprune_rt.load(tmp_path / "ltp")
    assert model.policy is not None
    assert model.policy.protect.segment == 0
    (tokens,) = model.tokenizer.tokenize([(QUERY, "the dog sleeps on a warm mat " * 4)])
    found = model.forward(
        [tokens.ids], [tokens.type_ids], segment_ids=[tokens.segments], trace=True
    )
    assert found.trace is not None
    (left,) = found.trace.kept[-1]
    query = np.flatnonzero(np.asarray(tokens.segments) == 0)
    assert set(query) <= set(left)
    assert len(left) < len(tokens)


DOCUMENTS = [f"{word} wrote the {count} program" for count in "abcd" for word in TOPICS]


@pytest.fixture(params=["Model", "CrossEncoder"])
def ranker(request: pytest.FixtureRequest, tiny: Any) -> Any:
    make = tokprune_rt.load if request.param == "Model" else tokprune_rt.CrossEncoder
    hard = policy(profiles={"fast": {"steps": [{"q": 0.9}]}})
    return make(str(tiny("bert", "sequence-classification", **ONE)), policy=hard)


@pytest.mark.parametrize("profile", [None, "fast"])
def test_the_best_are_rescored_exactly(ranker: Any, profile: str | None) -> None:
    pruned = ranker.rank(QUERY, DOCUMENTS, profile=profile)
    dense = ranker.rank(QUERY, DOCUMENTS, profile="off")
    assert pruned != dense
    exact = {entry["corpus_id"]: entry["score"] for entry in dense}
    found = ranker.rank(QUERY, DOCUMENTS, profile=profile, rescore=5)
    head = [entry["corpus_id"] for entry in found[:5]]
    assert set(head) == {entry["corpus_id"] for entry in pruned[:5]}
    assert [entry["score"] for entry in found[:5]] == [exact[place] for place in head]
    assert head == [entry["corpus_id"] for entry in dense if entry["corpus_id"] in head]
    assert found[5:] == pruned[5:]
    assert ranker.rank(QUERY, DOCUMENTS, profile=profile, rescore=99) == dense


def test_rescoring_with_other_options(ranker: Any) -> None:
    full = ranker.rank(QUERY, DOCUMENTS, rescore=5, return_documents=True)
    assert [DOCUMENTS[entry["corpus_id"]] for entry in full] == [entry["text"] for entry in full]
    assert ranker.rank(QUERY, DOCUMENTS, rescore=5, return_documents=True, top_k=3) == full[:3]
    dense = ranker.rank(QUERY, DOCUMENTS, profile="off")
    assert ranker.rank(QUERY, DOCUMENTS, profile="off", rescore=5) == dense
    assert ranker.rank(QUERY, [], rescore=5) == []
    for bad in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="rescore must be a positive int or None"):
            ranker.rank(QUERY, DOCUMENTS, rescore=bad)


def test_equal_scores_stay_in_order(ranker: Any) -> None:
    found = ranker.rank(QUERY, ["a dog", "a dog", "a dog"], rescore=2)
    assert [entry["corpus_id"] for entry in found] == [0, 1, 2]
