"""Calibration: the search, what it judges by, what it writes, and how it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BuildModel
from safetensors.numpy import load_file, save_file
from test_cli import run
from tiny_models import CORPUS

import tokprune_rt
from tokprune_rt.bench.timing import alternate
from tokprune_rt.calibration import Settings, calibrate, judge, passes
from tokprune_rt.calibration.families import FAMILIES, SHARES
from tokprune_rt.calibration.passes import shortest_gain
from tokprune_rt.calibration.sample import draw
from tokprune_rt.calibration.search import Point, search, uniform_loss
from tokprune_rt.policy import PolicyError, load_policy, parse_policy, policy_hash, preset

LAYERS = 3
TEXTS = [" ".join([CORPUS[i % 6], CORPUS[(i * 5 + 1) % 6], str(i)]) for i in range(45)]
SMALL = Settings(min_quality=0.9, sample=45)


@pytest.fixture(scope="module", autouse=True)
def short_timing() -> Iterator[None]:
    """One turn of each; what the times are is no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "alternate", lambda calls, *_: alternate(calls, 1, 0.01))
        yield


@pytest.fixture(scope="module")
def model(tiny: BuildModel) -> Any:
    return tokprune_rt.load(tiny("bert"), "off", threads=1)


@pytest.fixture(scope="module")
def found(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("calibrated")
    result = calibrate(model, TEXTS, folder, SMALL)
    result.save(folder)
    return result, folder


def priced(prices: list[float], work: list[float]) -> Any:
    """Evaluation of a model whose layers have quadratic prices; counts its calls."""

    def evaluate(shares: tuple[float, ...]) -> Point:
        evaluate.calls += 1  # type: ignore[attr-defined]
        loss = sum(p * s * s for p, s in zip(prices, shares, strict=True))
        saved = sum(w * s for w, s in zip(work, shares, strict=True))
        return Point(shares, 1 - saved, loss)

    evaluate.calls = 0  # type: ignore[attr-defined]
    return evaluate


def test_search_spends_where_it_is_cheap() -> None:
    evaluate = priced([4.0, 1.0, 0.25], [0.3, 0.3, 0.3])
    path = search(evaluate, 3, lambda point: point.macs < 0.75)
    losses = [point.loss for point in path]
    macs = [point.macs for point in path]
    assert losses == sorted(losses)
    assert macs == sorted(macs, reverse=True)
    first, second, third = path[-1].shares
    assert first < second < third
    # No other allocation on the grid does as much work less at a smaller loss.
    best = min(
        4 * a * a + b * b + 0.25 * c * c
        for a in SHARES
        for b in SHARES
        for c in SHARES
        if 1 - 0.3 * (a + b + c) <= path[-1].macs + 1e-9
    )
    assert path[-1].loss <= best * 1.25
    # Layers that are too dear are not asked at every step.
    assert evaluate.calls < 2.5 * len(path)


def test_search_ends_in_time_and_at_the_end_of_the_shares() -> None:
    assert len(search(priced([1.0], [0.5]), 1, lambda point: False)) == len(SHARES)
    assert len(search(priced([1.0], [0.5]), 1, lambda point: False, lambda: False)) == 1
    assert len(search(priced([1.0], [0.0]), 1, lambda point: False)) == 1

    coarse = search(stepped, 1, lambda point: point.macs < 0.9)
    assert [point.shares for point in coarse] == [(0.0,), (0.22,)]


def stepped(shares: tuple[float, ...]) -> Point:
    """Texts of so few tokens that small shares of them are none."""
    return Point(shares, 1 - 0.6 * (shares[0] >= 0.2), shares[0])


def test_uniform_loss() -> None:
    evaluate = priced([4.0, 1.0, 0.25], [0.3, 0.3, 0.3])
    # A share of 0.3 everywhere leaves 0.73; the curve between the points tried is nearly straight.
    assert uniform_loss(evaluate, 3, 0.73) == pytest.approx(5.25 * 0.09, rel=0.05)
    assert uniform_loss(evaluate, 3, 0.4) == np.inf


@pytest.mark.parametrize("name", FAMILIES)
def test_families_write_policies(name: str) -> None:
    shares = (0.0, 0.1, 0.3)
    document = FAMILIES[name].document(shares, {"more": (0.03, 0.5, 0.6), "less": (0.0,) * 3})
    policy = parse_policy(document)
    assert set(policy.profiles) == {"more", "less"}
    left = np.ones(LAYERS)
    for step, select in zip(policy.steps, policy.resolve(None)[0], strict=True):
        for layer, ratio in zip(step.layers, select.values["ratio"], strict=True):
            left[layer] *= ratio
    np.testing.assert_allclose(left, 1 - np.array(shares), atol=2e-4)


def test_vectors_are_judged_by_direction_and_neighbours() -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((40, 8)).astype(np.float32)
    same = judge.VectorJudge(dense).quality(dense * 3)
    assert (same.value, same.neighbours, same.index) == (pytest.approx(1), 1.0, 1.0)
    other = rng.standard_normal((40, 8)).astype(np.float32)
    far = judge.VectorJudge(dense).quality(other)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (dense, other)]
    cosines = (unit[0] * unit[1]).sum(1)
    assert far.value == pytest.approx(cosines.mean(), abs=1e-6)
    assert far.low == pytest.approx(np.quantile(cosines, 0.05), abs=1e-6)
    assert far.neighbours is not None and 0.05 < far.neighbours < 0.6


def test_logits_are_judged_by_decisions() -> None:
    dense = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], np.float32)
    exact = judge.LogitJudge(dense)
    assert exact.quality(dense) == judge.Quality(1.0, divergence=0.0)
    swapped = exact.quality(dense[:, ::-1])
    assert swapped.value == 0.0
    assert swapped.divergence is not None and swapped.divergence > 0.5
    one = judge.LogitJudge(dense[:, :1])
    assert one.quality(dense[:, :1] * 2 + 1).value == pytest.approx(1.0)


def test_shortest_gain() -> None:
    assert shortest_gain({16: 0.9, 32: 1.1, 64: 0.99, 96: 1.2}) == 96
    assert shortest_gain({16: 1.0, 32: 1.1}) == 0
    assert shortest_gain({16: 0.9, 32: 0.8}) == 33


def test_draw_is_a_sample() -> None:
    texts = [f"t{i}" for i in range(1000)]
    drawn = draw(iter([*texts, "  "]), 100, seed=1)
    assert drawn == draw(texts, 100, seed=1) != draw(texts, 100, seed=2)
    assert len(set(drawn)) == 100
    assert np.mean([int(text[1:]) for text in drawn]) == pytest.approx(500, abs=100)


def test_what_is_written_runs_as_reported(found: tuple[Any, Path], model: Any) -> None:
    result, folder = found
    assert {path.name for path in folder.iterdir()} == {
        "token_policy.json",
        "report.json",
        "report.md",
        "pareto.png",
        "calibration.json",
    }
    report = json.loads((folder / "report.json").read_text())
    policy = load_policy(folder)
    assert policy == result.policy
    assert policy.output is None
    loaded = tokprune_rt.load(model.folder, policy, threads=1)
    assert report["policy_hash"] == loaded.policy_hash
    drawn = draw(TEXTS, SMALL.sample, SMALL.seed)
    held_out = drawn[len(drawn) // 3 :]
    dense = model.encode(held_out, normalize_embeddings=True)
    for row in result.rows:
        profile = None if row.name == "default" else row.name
        vectors = loaded.encode(held_out, profile=profile, normalize_embeddings=True)
        cosine = (vectors * dense).sum(axis=1).mean()
        assert cosine == pytest.approx(row.quality.value, abs=1e-5)
    assert result.chosen.quality.value >= 0.9
    assert result.chosen.macs < 1
    assert f"| default | {result.chosen.macs:.0%} |" in (folder / "report.md").read_text()


@pytest.mark.parametrize("wanted", [0.99, 0.999])
def test_is_as_cheap_as_the_quality_allows(wanted: float, model: Any, tmp_path: Path) -> None:
    chosen, *others = calibrate(
        model, TEXTS, tmp_path, Settings(min_quality=wanted, sample=45)
    ).rows
    assert chosen.quality.value >= wanted
    cheaper = [row for row in others if row.macs < chosen.macs]
    assert cheaper
    assert all(row.quality.value < wanted for row in cheaper)


def test_goes_on_where_it_stopped(
    found: tuple[Any, Path], model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = found
    content = json.loads((folder / "calibration.json").read_text())
    # As after a kill in the middle of the search.
    last = list(content["points"])[-1]
    content["points"][last] = content["points"][last][:2]
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    calls = 0
    plain = passes.Passes.run

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return plain(*args)

    monkeypatch.setattr(passes.Passes, "run", counted)
    lines: list[str] = []
    again = calibrate(model, TEXTS, tmp_path, SMALL, tell=lines.append)
    assert again.chosen.shares == result.chosen.shares
    assert again.family == result.family
    assert "measurements of an earlier run are used again" in lines[0]
    assert calls > 0
    whole = json.loads((folder / "calibration.json").read_text())["points"]
    done = json.loads((tmp_path / "calibration.json").read_text())["points"]
    assert done == whole


def test_goes_on_only_where_nothing_changed(
    found: tuple[Any, Path], model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and speeds that were measured otherwise are not used in silence."""
    shutil.copy(found[1] / "calibration.json", tmp_path)

    def refused(what: str, model: Any, texts: list[str] = TEXTS) -> None:
        told = calibrate_error(model, texts, tmp_path, SMALL)
        assert f"holds another calibration: {what} was" in told

    refused("drawn texts", model, TEXTS[:-1])
    folder = shutil.copytree(model.folder, tmp_path / "model")
    monkeypatch.setattr(model, "name", str(folder))
    content = json.loads((tmp_path / "calibration.json").read_text())
    content["job"]["model"] = model.name
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    refused("threads", tokprune_rt.load(folder, "off", threads=2))
    refused("isa", tokprune_rt.load(folder, "off", threads=1, isa="scalar"))
    with monkeypatch.context() as patch:
        patch.setitem(calibrate.__globals__, "cpu_model", lambda: "another")
        refused("cpu", model)
    modules = [("", "models.Transformer"), ("1_Pooling", "models.Pooling")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": index, "path": path, "type": f"sentence_transformers.{kind}"}
                for index, (path, kind) in enumerate(modules)
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, "pooling_mode_cls_token": True})
    )
    refused("dense outputs", tokprune_rt.load(folder, "off", threads=1))
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][0] += 1
    save_file(weights, folder / "model.safetensors")
    refused("weights", tokprune_rt.load(folder, "off", threads=1))


def calibrate_error(model: Any, texts: Any, folder: Path, settings: Settings | None = None) -> str:
    with pytest.raises(ValueError) as error:
        calibrate(model, texts, folder, settings)
    return str(error.value)


def test_targets_out_of_reach_say_how_close(model: Any, tmp_path: Path) -> None:
    fast = calibrate_error(model, TEXTS, tmp_path, Settings(target_speedup=40.0, sample=45))
    assert "a speed-up of 40 was not reached: with" in fast
    slow = calibrate_error(model, TEXTS, tmp_path, Settings(latency_ms=1e-6, sample=45))
    assert "1e-06 ms a text were not reached" in slow


def test_classifier(tiny: BuildModel, tmp_path: Path) -> None:
    classifier = tokprune_rt.load(tiny("roberta", "sequence-classification"), threads=1)
    result = calibrate(classifier, TEXTS, tmp_path, Settings(min_quality=0.5, sample=45))
    assert result.chosen.quality.divergence is not None
    assert 0.5 <= result.chosen.quality.value <= 1
    assert "| profile | MACs | times as fast | agreement | divergence |" in result.markdown()


PAIRS = [(CORPUS[i % 6], text) for i, text in enumerate(TEXTS)]


def test_pairs_keep_their_query(tiny: BuildModel, tmp_path: Path) -> None:
    reranker = tokprune_rt.load(
        tiny("bert", "sequence-classification", id2label={0: "fit"}, label2id={"fit": 0}), threads=1
    )
    result = calibrate(reranker, PAIRS, tmp_path, Settings(min_quality=0.5, sample=45))
    assert "dropping by the attention of the first text's tokens" in result.markdown()
    pruned = tokprune_rt.load(reranker.folder, result.policy, threads=1)
    tokens = pruned.tokenizer.tokenize(PAIRS)
    found, _ = pruned.engine.forward(tokens, "logits", pruned.engine.plan(None), trace=True)
    left = 0
    for item, kept in zip(tokens, found["trace_kept"][-1], strict=True):
        assert set(np.flatnonzero(item.segments == 0)) <= set(kept.tolist())
        left += len(kept)
    assert left < sum(map(len, tokens))
    mixed = calibrate_error(reranker, [*PAIRS[:20], *TEXTS], tmp_path)
    assert mixed == "texts: found texts and pairs; expected one or the other"


def test_refusals(tiny: BuildModel, model: Any, tmp_path: Path) -> None:
    assert "found 20 texts; a calibration needs 30" in calibrate_error(model, TEXTS[:20], tmp_path)
    tagger = tokprune_rt.load(tiny("bert", "token-classification"))
    assert "calibration compares embeddings" in calibrate_error(tagger, TEXTS, tmp_path)
    with pytest.raises(ValueError, match="give only one of target_speedup and min_quality"):
        Settings(target_speedup=1.5, min_quality=0.9)
    with pytest.raises(ValueError, match="min_quality: found 98; allowed: above 0, below 1"):
        Settings(min_quality=98)
    (tmp_path / "calibration.json").write_text("{")
    assert "is damaged" in calibrate_error(model, TEXTS, tmp_path)


def test_command(tiny: BuildModel, tmp_path: Path) -> None:
    texts = tmp_path / "corpus.txt"
    texts.write_text("\n".join(TEXTS))
    folder = tmp_path / "out"
    options = ["--texts", texts, "-o", folder, "--min-quality", "0.9", "--sample", "45"]
    result = run("calibrate", tiny("bert"), *options, "--threads", "1")
    assert "default" in result.stdout and "5th pct." in result.stdout
    written = load_policy(folder)
    assert written.name == "calibrated" and "replaced" not in result.stderr
    other = parse_policy(preset("quantile", layers=3, q=0.3))
    other.save(folder)
    result = run("calibrate", tiny("bert"), *options, "--threads", "1")
    old, new = (policy_hash(policy)[:12] for policy in (other, written))
    assert f"policy {old} that was in {folder} is replaced by {new}" in result.stderr
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo")
    run("calibrate", tiny("bert"), "--texts", few, "-o", tmp_path / "none", code=2)
    assert not (tmp_path / "none").exists()
    wrong = run("calibrate", tiny("bert"), "--texts", texts, "--min-quality", "2", code=2)
    assert "min_quality: found 2.0" in wrong.stderr


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_command_reads_pairs(ending: str, tiny: BuildModel, tmp_path: Path) -> None:
    rows = [{"query": query, "document": text} for query, text in PAIRS]
    file = tmp_path / f"pairs.{ending}"
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    model = tiny("bert", "sequence-classification", id2label={0: "fit"}, label2id={"fit": 0})
    options = ["--texts", file, "--column", "query", "-o", tmp_path / "out", "--threads", "1"]
    options += ["--min-quality", "0.5", "--sample", "45"]
    run("calibrate", model, *options, "--pair", "document")
    assert load_policy(tmp_path / "out").protect.segment == 0
    if ending == "jsonl":
        wrong = run("calibrate", model, *options, "--pair", "text", code=2)
        assert "line 1: 'text' is NoneType, not a text" in wrong.stderr


def test_a_policy_comes_with_the_package(minilm: Any, minilm_folder: Path) -> None:
    model = tokprune_rt.load(minilm_folder, policy="calibrated")
    assert model.policy is not None and model.policy.output is not None
    assert model.policy.output.over == "size"
    assert minilm.policy is None
    assert model.profiles == ["off", "light", "balanced", "fast", "fastest"]
    long = " ".join(CORPUS[:6] + CORPUS[:6])
    dense = minilm.encode(long, normalize_embeddings=True)
    np.testing.assert_array_equal(
        model.encode(long, profile="off", normalize_embeddings=True), dense
    )
    cosines = [
        float(model.encode(long, profile=name, normalize_embeddings=True) @ dense)
        for name in ("light", None, "fastest")
    ]
    assert 1 > cosines[0] > cosines[1] > cosines[2] > 0.8
    # Below skip_below nothing changes.
    np.testing.assert_array_equal(model.encode(CORPUS[0]), minilm.encode(CORPUS[0]))
    ids = [item.ids for item in minilm.tokenizer.tokenize([long])]
    assert model.forward(ids).stats.kept_per_sequence[-1][0] < 0.6 * len(ids[0])


def test_no_policy_comes_for_other_weights(tiny: BuildModel) -> None:
    with pytest.raises(PolicyError, match=r"no calibrated policy .* for all-MiniLM-L6-v2\. `tok"):
        tokprune_rt.load(tiny("bert"), policy="calibrated")
