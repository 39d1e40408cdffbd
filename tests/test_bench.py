"""`tokprune_rt.bench`: what is timed is verified, and what is reported can be read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokprune_rt.bench import (
    BenchReport,
    VerificationError,
    models,
    peers,
    run_bench,
    runner,
    workloads,
)
from tokprune_rt.bench.candidates import PACKED, PADDED, PRUNED, candidates, packed, padded_workload
from tokprune_rt.bench.texts import documents, mixed_documents
from tokprune_rt.bench.timing import Timing, alternate
from tokprune_rt.bench.verify import check_pruned
from tokprune_rt.bench.workloads import Workload, uniform_workload, workload_names

TINY = models.Shape("minilm", "tiny", 3, 48, 4, 96)


@pytest.fixture(autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in place of MiniLM's shape, kept apart from those of real runs."""
    folder = tmp_path_factory.getbasetemp() / "bench-models"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(models, "cache_folder", lambda: folder)
    monkeypatch.setitem(models.SHAPES, "minilm", TINY)


@pytest.fixture
def ragged() -> Workload:
    rng = np.random.default_rng(5)
    ids = [rng.integers(1000, 30000, n, dtype=np.int32) for n in (3, 17, 9, 30, 1)]
    return Workload("ragged", tuple(ids), 2)


def test_report(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = run_bench(
        ("minilm",), ["2x8", "1x5"], [], 1, rounds=2, progress=lambda *args: seen.append(args)
    )
    assert [(row.workload, row.mode) for row in report.rows] == [
        (name, mode) for name in ("2x8", "1x5") for mode in (PACKED, PRUNED)
    ]
    assert all(row.max_diff is not None and row.max_diff < 1e-4 for row in report.rows)
    assert all(row.vs_best_peer is None and row.median_ms > 0 for row in report.rows)
    assert report.rows[1].macs_ratio < report.rows[0].macs_ratio == 1
    assert seen[0][:2] == (0, 2) and seen[-1][:2] == (2, 2)
    assert report.environment["threads"] == 1

    path = tmp_path / "report.json"
    report.save_json(path)
    assert BenchReport.load_json(path) == report
    assert "packed pruned" in report.markdown()
    assert report.table().row_count == 6
    report.save_plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    path.write_text(json.dumps({"format": "other"}), encoding="utf-8")
    with pytest.raises(ValueError, match="no benchmark report"):
        BenchReport.load_json(path)


def test_padding_and_order(ragged: Workload) -> None:
    assert padded_workload(ragged).lengths.tolist() == [17, 17, 30, 30, 1]
    assert ragged.padded_lengths("sorted").tolist() == [30, 30, 9, 9, 1]
    with runner.stage(TINY, models.model_folder(TINY), "random weights", ["torch"], 1) as loaded:
        rows = runner.measure(loaded, ragged, rounds=1, limit_s=0)
    modes = ["padded, arrival", "padded, sorted", PADDED, PACKED, PRUNED]
    assert [row.mode for row in rows] == modes
    macs = {row.mode: row.macs for row in rows}
    assert macs["padded, arrival"] == macs[PADDED] > macs["padded, sorted"] > macs[PACKED]
    assert all(row.max_diff is not None and row.max_diff < 1e-4 for row in rows)
    assert rows[0].vs_best_arrival == 1.0


def test_wrong_result_is_not_timed(ragged: Workload) -> None:
    with runner.stage(TINY, models.model_folder(TINY), "random weights", [], 1) as loaded:
        expected = runner.reference(loaded, ragged)
        good = packed(loaded.model, ragged)

        def spoiled(outputs: object) -> list[np.ndarray]:
            rows = good.rows(outputs)  # type: ignore[arg-type]
            rows[2] = rows[2] + np.float32(0.01)
            return rows

        assert runner.check(loaded, ragged, good, expected).max_diff is not None
        with pytest.raises(VerificationError, match=r"sequence 2 differs by 0\.01"):
            runner.check(loaded, ragged, replace(good, rows=spoiled), expected)
        assert loaded.reference is not None
        bert = loaded.reference.bert
        with pytest.raises(VerificationError, match="kept"):
            check_pruned(bert, loaded.model, {1: 0.9, 2: 0.5}, ragged.sequences)


def test_engines_that_are_not_installed(monkeypatch: pytest.MonkeyPatch, ragged: Workload) -> None:
    monkeypatch.setitem(peers.PEERS, "openvino", ("OpenvinoPeer", ("no_such_package",)))
    monkeypatch.setitem(peers.PEERS, "torch", ("TorchPeer", ("no_such_package",)))
    report = run_bench(("minilm",), ["1x4"], ["openvino"], 1, rounds=1)
    assert report.skipped == {"openvino": "not installed: no_such_package"}
    assert {row.checked for row in report.rows} == {"nothing, because torch is not installed"}
    assert "openvino: not installed" in report.markdown()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": ["huge"]}, "unknown shape 'huge'"),
        ({"workloads": ["8by128"]}, "unknown workload '8by128'"),
        ({"workloads": ["1x513"]}, "at most 512 tokens"),
        ({"peers": ["tvm"]}, "unknown engine 'tvm'"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    settings = {"shapes": ["minilm"], "workloads": ["1x4"], "peers": [], "threads": 1}
    with pytest.raises(ValueError, match=message):
        run_bench(**{**settings, **arguments})  # type: ignore[arg-type]


def test_workload_names() -> None:
    assert workload_names("minilm", None) == list(workloads.DEFAULT_WORKLOADS["minilm"])
    assert workload_names("bert-base", ["all"]) == list(workloads.UNIFORM)
    assert workload_names("minilm", ["mixed", "all"])[0] == "mixed"
    assert uniform_workload("3x7", seed=1).tokens == 21


def test_turns() -> None:
    calls: list[str] = []
    timings = alternate([lambda: calls.append("a"), lambda: calls.append("b")], 2, 60)
    assert [timing.calls for timing in timings] == [20, 20]
    assert "".join(calls) == "a" * 11 + "b" * 22 + "a" * 11
    assert Timing(((1.0,), (2.0,))).times_faster_than(Timing(((3.0,), (4.0,)))) == 2.5


def test_documents() -> None:
    chosen = mixed_documents(20, seed=3)
    assert chosen == mixed_documents(20, seed=3) != mixed_documents(20, seed=4)
    assert len(set(chosen)) == 20
    with pytest.raises(ValueError, match="were asked for"):
        mixed_documents(len(documents()) + 1)


def test_every_candidate_runs_the_same_work(ragged: Workload) -> None:
    with runner.stage(TINY, models.model_folder(TINY), "random weights", [], 1) as loaded:
        found = candidates(loaded.model, loaded.peers, ragged)
        assert [entry.mode for entry in found] == [PADDED, PACKED, PRUNED]
        for entry in found:
            rows = entry.rows(entry.run())
            assert len(rows) == len(ragged.sequences)
