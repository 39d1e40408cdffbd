"""`Model` from text to embeddings, its statistics, policies, export and use by several threads."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_calls import SLACK

import tokprune_rt
from tokprune_rt.engine import TOKENS_PER_TEXT, batches


def test_encode_shapes_and_order(minilm: Any, texts: list[str]) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm.folder), device="cpu")
    expected = theirs.encode(texts)
    found = minilm.encode(texts)
    assert found.shape == (len(texts), 384) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * SLACK)
    one = minilm.encode(texts[0])
    assert one.shape == (384,)
    np.testing.assert_array_equal(one, found[0])
    for items in (tuple(texts), np.array(texts), iter(texts)):
        np.testing.assert_array_equal(minilm.encode(items, batch_size=1), found)
    assert minilm.encode([]).shape == (0, 384)
    assert minilm.encode([]).dtype == np.float32
    np.testing.assert_allclose(minilm.encode(""), theirs.encode(""), rtol=0, atol=2e-5 * SLACK)


def test_encode_shows_progress(minilm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    minilm.encode(["a", "b"], show_progress_bar=True)
    assert "2/2" in capsys.readouterr().err


def test_plain_encoder_is_mean_pooled(tiny: Any) -> None:
    model = tokprune_rt.load(tiny("distilbert"))
    tokens = model.tokenizer.tokenize(["the quick brown fox"])[0]
    hidden = model.forward([tokens.ids]).hidden[0]
    found = model.encode("the quick brown fox")
    np.testing.assert_allclose(found, hidden.mean(axis=0), rtol=0, atol=1e-5)
    unit = model.encode("the quick brown fox", normalize_embeddings=True)
    np.testing.assert_allclose(unit, found / np.linalg.norm(found), rtol=0, atol=1e-6)


def test_stats_and_trace_of_a_dense_model(tiny: Any) -> None:
    model = tokprune_rt.load(tiny("bert"))
    out = model.forward([[2, 7, 8, 3], [2, 3]], trace=True)
    stats = out.stats
    assert stats.tokens_in == 6
    assert stats.kept_per_layer.tolist() == [6, 6, 6]
    assert stats.kept_per_sequence.tolist() == [[4, 2]] * 3
    d, f = 64, 128
    per_layer = sum(4 * d * d * n + 2 * n * n * d + 2 * d * f * n for n in (4, 2))
    assert stats.macs_dense == 3 * per_layer
    padded = 2 * (4 * d * d * 4 + 2 * 16 * d + 2 * d * f * 4)
    assert stats.macs_padded == 3 * padded
    assert out.trace is not None
    assert [[k.tolist() for k in layer] for layer in out.trace.kept] == [[[0, 1, 2, 3], [0, 1]]] * 3
    assert out.trace.scores == [None] * 3
    assert model.forward([[2, 3]]).trace is None


@pytest.mark.parametrize("task", ["features", "sequence-classification", "token-classification"])
def test_empty_batch(tiny: Any, task: str) -> None:
    model = tokprune_rt.load(tiny("bert", task))
    out = model.forward([], trace=True)
    assert out.hidden == [] and out.positions == []
    assert out.stats.kept_per_layer.tolist() == [0, 0, 0]
    if task == "features":
        assert out.pooled is not None and out.pooled.shape == (0, 64) and out.logits is None
    else:
        assert out.pooled is None and len(out.logits) == 0


def test_description(minilm: Any) -> None:
    text = repr(minilm)
    for part in ("BertModel", "6 layers x 384", "policy=off", minilm.isa):
        assert part in text
    assert minilm.profiles == ["off"]
    assert minilm.policy_hash == "off"
    assert minilm.dimension == 384 and minilm.max_seq_length == 256
    assert minilm.task == "features" and minilm.labels == () and minilm.prompts == {}
    assert minilm.threads >= 1


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batches(batch_size: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 513, 200).tolist()
    found = list(batches(lengths, batch_size))
    assert sorted(np.concatenate(found).tolist()) == list(range(200))
    budget = TOKENS_PER_TEXT * batch_size
    for part in found:
        assert len(part) == 1 or sum(lengths[i] for i in part) <= budget
    order = [lengths[i] for part in found for i in part]
    assert order == sorted(order, reverse=True)
    assert list(batches([], batch_size)) == []


POLICY = {
    "format": "token-policy",
    "version": 1,
    "layers": 3,
    "name": "halves",
    "protect": {"first": True},
    "scores": {"imp": {"kind": "attn_col", "norm": "unprotected"}},
    "steps": [
        {
            "layers": [1],
            "site": "mid",
            "score": "imp",
            "select": {"kind": "ratio", "ratio": 0.5},
            "action": {"kind": "drop"},
        }
    ],
    "profiles": {"gentle": {"steps": [{"ratio": 0.9}]}},
}


def test_policies_and_profiles(tiny: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bert"), tmp_path / "model")
    dense = tokprune_rt.load(folder)
    (folder / "token_policy.json").write_text(json.dumps(POLICY))
    model = tokprune_rt.load(folder)
    assert model.profiles == ["off", "gentle"]
    assert "halves" in repr(model) and len(model.policy_hash) == 64
    ids = [list(range(10, 30)), [2, 10, 3]]
    out = model.forward(ids, trace=True)
    assert out.stats.kept_per_sequence.tolist() == [[20, 3], [10, 2], [10, 2]]
    assert [len(rows) for rows in out.hidden] == [10, 2]
    assert out.stats.macs < out.stats.macs_dense
    assert out.positions[0][0] == 0
    gentle = model.forward(ids, profile="gentle").stats
    assert gentle.kept_per_sequence[-1].tolist() == [18, 3]
    off = model.forward(ids, profile="off")
    for a, b in zip(off.hidden, dense.forward(ids).hidden, strict=True):
        np.testing.assert_array_equal(a, b)
    assert off.stats.macs == off.stats.macs_dense
    protect = [[0] * 20, [1, 1, 1]]
    kept = model.forward(ids, protect=protect).stats.kept_per_sequence
    assert kept[-1].tolist() == [10, 3]
    with pytest.raises(ValueError, match=r"unknown profile 'fast'.*off, gentle"):
        model.encode("x", profile="fast")
    with pytest.raises(ValueError, match=r"unknown profile 'fast'.*off"):
        dense.encode("x", profile="fast")
    assert tokprune_rt.load(folder, policy="off").profiles == ["off"]
    same = tokprune_rt.load(tiny("bert"), policy=POLICY)
    assert same.policy_hash == model.policy_hash
    path = tmp_path / "other.json"
    path.write_text(json.dumps(POLICY))
    assert tokprune_rt.load(tiny("bert"), policy=path).policy_hash == model.policy_hash
    assert tokprune_rt.load(tiny("bert"), policy=str(path)).policy_hash == model.policy_hash


def test_protecting_a_segment(tiny: Any) -> None:
    one = {"id2label": {0: "x"}, "label2id": {"x": 0}}
    for family in ("bert", "roberta"):
        policy = POLICY | {"protect": {"first": True, "segment": 0}}
        model = tokprune_rt.load(tiny(family, "sequence-classification", **one), policy=policy)
        pair = model.tokenizer.tokenize([("who wrote it", "the quick brown fox " * 4)])[0]
        out = model.forward(
            [pair.ids], token_type_ids=None, segment_ids=[pair.segments], trace=True
        )
        protected = set(np.flatnonzero(pair.segments == 0).tolist())
        assert out.trace is not None
        assert protected <= set(out.trace.kept[-1][0].tolist())
        np.testing.assert_array_equal(
            model.predict([("who wrote it", "the quick brown fox " * 4)], raw_scores=True),
            model.forward([pair.ids], [pair.type_ids], segment_ids=[pair.segments]).logits,
        )


def test_export(tiny: Any, tmp_path: Path) -> None:
    target = tmp_path / "out" / "pruned"
    assert tokprune_rt.export(tiny("bert"), target, policy=POLICY) == target
    assert not list(target.parent.glob(".*"))
    copy = tokprune_rt.load(target)
    assert copy.profiles == ["off", "gentle"]
    dense = tokprune_rt.load(tiny("bert"))
    np.testing.assert_array_equal(copy.encode("a fox", profile="off"), dense.encode("a fox"))
    with pytest.raises(FileExistsError, match="not an empty folder"):
        tokprune_rt.export(copy, target)
    empty = tmp_path / "empty"
    empty.mkdir()
    tokprune_rt.export(copy, empty)
    assert tokprune_rt.load(empty).policy_hash == copy.policy_hash
    with pytest.raises(ValueError, match="no policy to write"):
        tokprune_rt.export(dense, tmp_path / "none")
    with pytest.raises(tokprune_rt.PolicyError, match="layers"):
        tokprune_rt.export(dense, tmp_path / "none", policy=POLICY | {"layers": 4})
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".*"))


def test_exported_folder_is_dense_elsewhere(tiny: Any, tmp_path: Path) -> None:
    import transformers

    target = tokprune_rt.export(tiny("bert"), tmp_path / "pruned", policy=POLICY)
    transformers.AutoModel.from_pretrained(target)


def test_threads_share_a_model(minilm: Any, texts: list[str]) -> None:
    expected = minilm.encode(texts)
    failures: list[object] = []

    def work() -> None:
        for _ in range(3):
            if not np.array_equal(minilm.encode(texts), expected):
                failures.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_pooling_skips_for_all_or_for_each(tiny: Any) -> None:
    model = tokprune_rt.load(tiny("bert"), threads=1)
    sequences = model.tokenizer.tokenize(["the quick brown fox", "one two three"])

    def pooled(skip: int | list[int]) -> Any:
        return model.engine.forward(sequences, "pooled", None, pool_skip=skip)[0]["pooled"]

    assert np.array_equal(pooled([2, 2]), pooled(2)) and np.array_equal(pooled([0, 0]), pooled(0))
    assert not np.array_equal(pooled(2), pooled(0))
    mixed = pooled([2, 0])
    assert np.array_equal(mixed[0], pooled(2)[0]) and np.array_equal(mixed[1], pooled(0)[1])
