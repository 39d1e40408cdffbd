"""`tokprune_rt.bench`: what is timed is verified, and what is reported can be read back."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune_rt.bench import (
    BenchReport,
    VerificationError,
    models,
    peers,
    roofline,
    run_bench,
    workloads,
)
from tokprune_rt.bench.calibration import calibration_for
from tokprune_rt.bench.candidates import (
    OURS,
    PACKED,
    PADDED,
    PRUNED,
    Candidate,
    candidates,
    packed,
    padded_workload,
    peer,
)
from tokprune_rt.bench.checking import Checked, check, reference
from tokprune_rt.bench.isa import Cap, hold
from tokprune_rt.bench.memory import MeasurementError, MemoryTask, measure_memory
from tokprune_rt.bench.peers import PeerKind
from tokprune_rt.bench.precision import TOLERANCES, check_precisions
from tokprune_rt.bench.rows import make_rows
from tokprune_rt.bench.runner import measure
from tokprune_rt.bench.stage import Stage, stage
from tokprune_rt.bench.texts import documents, mixed_documents
from tokprune_rt.bench.timing import Timing, alternate
from tokprune_rt.bench.verify import check_pruned, compare
from tokprune_rt.bench.workloads import Workload, uniform_workload, workload_names

TINY = models.Shape("minilm", "tiny", 3, 48, 4, 96)
ABSENT = ("no_such_package",)


@pytest.fixture(autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in place of MiniLM's shape, kept apart from those of real runs."""
    folder = tmp_path_factory.getbasetemp() / "bench-models"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(models, "cache_folder", lambda: folder)
    monkeypatch.setitem(models.SHAPES, "minilm", TINY)
    monkeypatch.setattr(roofline, "_SIZE", 64)
    monkeypatch.setattr(roofline, "_READ_BYTES", 1 << 16)


def loaded_with(*keys: tuple[str, str]) -> AbstractContextManager[Stage]:
    """The small model in this package and in these engines, one thread each."""
    return stage(TINY, models.model_folder(TINY), "random weights", keys, 1)


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
    with loaded_with(("torch", "fp32")) as loaded:
        rows = measure(loaded, ragged, rounds=1, limit_s=0)
    modes = ["padded, arrival", "padded, sorted", PADDED, PACKED, PRUNED]
    assert [row.mode for row in rows] == modes
    macs = {row.mode: row.macs for row in rows}
    assert macs["padded, arrival"] == macs[PADDED] > macs["padded, sorted"] > macs[PACKED]
    assert all(row.max_diff is not None and row.max_diff < 1e-4 for row in rows)
    assert rows[0].vs_best_arrival == 1.0


def test_wrong_result_is_not_timed(ragged: Workload) -> None:
    with loaded_with() as loaded:
        expected = reference(loaded, ragged)
        model = loaded.models["fp32"]
        good = packed(model, "fp32", ragged)

        def spoiled(outputs: object) -> list[np.ndarray]:
            rows = good.rows(outputs)  # type: ignore[arg-type]
            rows[2] = rows[2] + np.float32(0.01)
            return rows

        assert check(loaded, ragged, good, expected).agreement is not None
        with pytest.raises(VerificationError, match=r"sequence 2 differs by 0\.01"):
            check(loaded, ragged, replace(good, rows=spoiled), expected)
        assert loaded.reference is not None
        bert, shares = loaded.reference.bert, {1: 0.9, 2: 0.5}
        with pytest.raises(VerificationError, match="kept"):
            check_pruned(bert, model, shares, ragged.sequences, TOLERANCES["fp32"])


def test_engines_that_are_not_installed(monkeypatch: pytest.MonkeyPatch, ragged: Workload) -> None:
    kind = PeerKind("OpenvinoPeer", ABSENT, {"fp32": (), "int8": ()})
    monkeypatch.setitem(peers.PEERS, "openvino", kind)
    monkeypatch.setitem(peers.PEERS, "torch", PeerKind("TorchPeer", ABSENT, {"fp32": ()}))
    report = run_bench(("minilm",), ["1x4"], ["openvino"], 1, rounds=1)
    assert report.skipped == {"openvino": "not installed: no_such_package"}
    assert peers.missing("openvino", "int8") == "not installed: no_such_package"
    assert peers.missing("openvino", "bf16") == "does not run at bf16 on CPUs"
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
        ({"precisions": ["fp8"]}, "unknown precision 'fp8'"),
        ({"precisions": []}, "at least one precision"),
        ({"isa": "mmx"}, "unknown instruction set 'mmx'"),
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
    with loaded_with() as loaded:
        found = candidates(loaded, ragged)
        assert [entry.mode for entry in found] == [PADDED, PACKED, PRUNED]
        for entry in found:
            rows = entry.rows(entry.run())
            assert len(rows) == len(ragged.sequences)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [(name, precision) for name, kind in peers.PEERS.items() for precision in kind.precisions],
)
def test_engine(engine: str, precision: str, ragged: Workload) -> None:
    reason = peers.missing(engine, precision)
    if reason is not None:
        pytest.skip(reason)
    with loaded_with((engine, precision)) as loaded:
        other = loaded.peers[engine, precision]
        assert other.note
        for order in ("arrival", "sorted"):
            entry = peer(engine, precision, other, loaded.config, ragged, order)
            found = check(loaded, ragged, entry, reference(loaded, ragged)).agreement
            assert found is not None and found.cosine >= TOLERANCES[precision].cosine


def test_reduced_precision(monkeypatch: pytest.MonkeyPatch, ragged: Workload) -> None:
    with loaded_with(("torch", "fp32"), ("torch", "bf16")) as loaded:
        rows = measure(loaded, uniform_workload("2x8"), rounds=1, limit_s=0)
        found = [(row.engine, row.precision, row.mode) for row in rows]
        fp32 = [("torch", "dense"), (OURS, PACKED), (OURS, PRUNED)]
        assert found[:3] == [(engine, "fp32", mode) for engine, mode in fp32]
        assert found[3] == ("torch", "bf16", "dense")
        assert rows[3].vs_peers == {"torch dense": 1.0} and rows[3].vs_dense is None
        assert rows[3].max_diff is not None and rows[3].max_diff > 1e-4

        strict = replace(TOLERANCES["bf16"], cosine=1.1)
        monkeypatch.setitem(TOLERANCES, "bf16", strict)
        refused: dict[str, str] = {}
        rows = measure(loaded, ragged, rounds=1, limit_s=0, refused=refused)
        assert {row.precision for row in rows} == {"fp32"}
        assert list(refused) == [
            f"torch bf16 padded, {order}, minilm ragged" for order in ("arrival", "sorted")
        ]
        assert all("no time" in why and "less than 1.1" in why for why in refused.values())


def test_who_competes_with_whom() -> None:
    def entry(engine: str, precision: str, milliseconds: float) -> tuple[Checked, Timing]:
        mode = PACKED if engine == OURS else "dense"
        item = Candidate(engine, precision, mode, list, list, 1000)
        return Checked(item, 1000, None, "nothing", None), Timing(((milliseconds / 1e3,),))

    field = [
        entry("a", "fp32", 12),
        entry("b", "fp32", 4),
        entry(OURS, "fp32", 8),
        entry(OURS, "bf16x3", 2),
        entry("a", "bf16", 6),
        entry(OURS, "bf16", 1),
    ]
    caps = {("b", "fp32"): Cap(False, "cannot be held")}
    with loaded_with() as loaded:
        for held, ratios in (
            ({}, [1 / 3, 1.0, 0.5, 2.0, 1.0, 6.0]),
            (caps, [1.0, 3.0, 1.5, 6.0, 1.0, 6.0]),
        ):
            checked, timings = [item for item, _ in field], [timing for _, timing in field]
            rows = make_rows(loaded, uniform_workload("2x8"), checked, timings, held)
            assert [row.vs_best_peer for row in rows] == pytest.approx(ratios)
    assert rows[3].vs_peers == pytest.approx({"a dense": 6.0, "b dense": 2.0})
    assert [row.held for row in rows] == [True, False, True, True, True, True]
    assert rows[5].gflops == pytest.approx(2e-3) and rows[5].vs_dense == 1.0
    assert rows[2].read_gb_s * 8 == pytest.approx(rows[5].read_gb_s * 1 * 2)


def test_precisions() -> None:
    assert check_precisions(["int8", "fp32", "int8"]) == ["int8", "fp32"]
    states = [np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)]
    turned = [states[0], np.array([[1, 1, 1, 1], [1, 1, -1, -1]], np.float32)]
    assert compare(states, states, "all", TOLERANCES["int8"]).cosine == pytest.approx(1)
    with pytest.raises(VerificationError, match=r"all: sequence 1: the mean has a cosine of 0\.7"):
        compare(states, turned, "all", TOLERANCES["int8"])
    broken = [np.full((40, 4), 1, np.float32)]
    other = [broken[0].copy()]
    other[0][7] = [1, -1, 1, -1]
    with pytest.raises(VerificationError, match="the worst token has a cosine of 0"):
        compare(broken, other, "all", TOLERANCES["int8"])
    with pytest.raises(VerificationError, match="differs by nan"):
        compare(broken, [other[0] * np.nan], "all", TOLERANCES["int8"])


def test_other_engines_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "openvino", "ctranslate2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    keys = [(name, "fp32") for name in peers.PEERS] + [("openvino", "int8")]

    def caps(isa: str | None, best: str) -> dict[tuple[str, str], Cap]:
        with hold(isa, best, keys) as found:
            if isa == "avx2":
                assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
                assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"
        assert os.environ["ATEN_CPU_CAPABILITY"] == "avx512"
        assert "ONEDNN_MAX_CPU_ISA" not in os.environ
        return found

    free = {key for key, cap in caps("avx2", "avx512").items() if not cap.held}
    assert free == {("onnxruntime", "fp32"), ("openvino", "fp32")}
    assert all(cap.held for cap in caps("avx512", "avx512_vnni").values())
    assert {cap.how for cap in caps("amx", "amx").values()} == {"everything the CPU has"}
    assert caps(None, "avx512") == {}
    monkeypatch.setitem(sys.modules, "torch", object())
    assert caps("avx2", "avx512")["torch", "fp32"].how == "cannot be held, it was loaded before"


def test_held_report() -> None:
    report = run_bench(("minilm",), ["1x4"], [], 1, rounds=1, isa="scalar")
    assert report.environment["isa"] == report.environment["isa_asked"] == "scalar"
    assert "--isa scalar" in report.markdown()


def test_ceilings() -> None:
    ceilings = roofline.Ceilings()
    ceilings.measure(2, {"fp32", "bf16x3"})
    assert ceilings.read_gb_s > 0 and (ceilings.gflops("fp32") or 0) > 0
    half, split = ceilings.gflops("bf16"), ceilings.gflops("bf16x3")
    assert (half is None and split is None) or half == pytest.approx(3 * (split or 0))
    assert ceilings.gflops("int8") is None


def test_memory() -> None:
    folder = str(models.model_folder(TINY))
    task = MemoryTask("minilm", "random weights", OURS, "fp32", folder, TINY.layers, 1, None)
    row = measure_memory(task)
    assert row.engine == OURS and row.load_ms > 0
    assert 1 < row.resident_mb <= row.peak_mb < 500
    with pytest.raises(MeasurementError, match="exit status 1"):
        measure_memory(replace(task, folder="nowhere"))


def test_memory_in_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(task: MemoryTask) -> Any:
        if task.precision == "int8":
            raise MeasurementError("exit status 9: killed")
        return measure_memory(task)

    monkeypatch.setattr("tokprune_rt.bench.runner.measure_memory", fails)
    report = run_bench(("minilm",), ["1x4"], [], 1, rounds=1, memory=True)
    assert [(row.engine, row.precision) for row in report.memory] == [(OURS, "fp32")]
    assert "Memory and load time" in report.markdown() and report.memory_table().row_count == 2
    report.save_json(tmp_path / "report.json")
    assert BenchReport.load_json(tmp_path / "report.json") == report


def test_calibration() -> None:
    found = calibration_for(models.model_folder(TINY))
    assert "random ids" in found.name and len(found.make()) == 64
