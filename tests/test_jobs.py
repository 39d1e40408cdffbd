"""Long jobs: every input and output, what is refused, and what a job leaves behind."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BuildModel
from test_cli import run

import tokprune_rt
from tokprune_rt.jobs import embed_file, reading
from tokprune_rt.jobs.reading import Source, chunks, scan
from tokprune_rt.policy import preset

WORDS = ("fox", "program", "London", "weather", "caf\u00e9", "1936", "\u4e16\u754c", "unbelievably")
TEXTS = [" ".join(WORDS[(i * k) % 8] for k in range(i % 23)) for i in range(150)]


@pytest.fixture(scope="module")
def model(tiny: BuildModel) -> Any:
    return tokprune_rt.load(tiny("bert"))


@pytest.fixture(scope="module")
def vectors(model: Any) -> Any:
    return model.encode(TEXTS)


def records() -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "n": i, "text": text} for i, text in enumerate(TEXTS)]


def write_input(path: Path, column: str = "text") -> Path:
    """`TEXTS` in the format that the name says."""
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    rows = [{**record, column: record["text"]} for record in records()]
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=40)
        return path
    lines = {
        "txt": lambda: "".join(f"{text}\n" for text in TEXTS),
        "jsonl": lambda: "\n\n".join(map(json.dumps, rows)),
        "csv": lambda: _table(rows, ","),
        "tsv": lambda: _table(rows, "\t"),
    }[ending]()
    content = lines.encode("utf-8-sig" if ending == "csv" else "utf-8")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def _table(rows: list[dict[str, Any]], delimiter: str) -> str:
    found = io.StringIO(newline="")
    writer = csv.DictWriter(found, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return found.getvalue()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_every_input_gives_the_vectors_of_encode(
    ending: str, packed: str, model: Any, vectors: Any, tmp_path: Path
) -> None:
    if ending == "parquet" and packed:
        pytest.skip("Parquet compresses its columns itself")
    source = write_input(tmp_path / f"in.{ending}{packed}", "body")
    out = tmp_path / "v.npy"
    done = embed_file(model, source, out, column="body", chunk=32)
    assert (done.rows, done.dimension, done.found) == (150, 64, 0)
    assert out.read_bytes()[:6] == b"\x93NUMPY"
    assert np.load(out).dtype == np.float32 and np.array_equal(np.load(out), vectors)
    facts = json.loads((tmp_path / "v.npy.json").read_text())
    assert facts["rows"] == 150 and facts["dimension"] == 64 and facts["policy_hash"] == "off"
    assert facts["model"] == model.name and facts["precision"] == model.precision
    assert facts["version"] == tokprune_rt.__version__ and facts["profile"] is None
    assert names(tmp_path) == {source.name, "v.npy", "v.npy.json"}


def test_parquet_output(model: Any, vectors: Any, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    source = write_input(tmp_path / "in.jsonl")
    out = tmp_path / "v.parquet"
    embed_file(model, source, out, chunk=64, keep=["id", "n", "text"])
    table = pq.read_table(out)
    assert table.column_names == ["row", "id", "n", "text", "vector"]
    assert [str(kind) for kind in table.schema.types[:4]] == ["int64", "string", "int64", "string"]
    assert table.column("row").to_pylist() == list(range(150))
    kept = table.select(["id", "n", "text"]).to_pylist()
    assert kept == records()
    flat = np.concatenate([part.flatten() for part in table.column("vector").chunks])
    assert flat.dtype == np.float32 and np.array_equal(flat.reshape(150, 64), vectors)
    file = pq.ParquetFile(out)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [64, 64, 22]
    facts = json.loads((tmp_path / "v.parquet.json").read_text())
    assert json.loads(table.schema.metadata[b"tokprune_rt"]) == facts


def test_parquet_keeps_types_and_nulls(model: Any, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table(
        {
            "text": TEXTS[:5],
            "when": pa.array([1, 2, None, 4, 5], pa.timestamp("ns")),
            "tags": pa.array([["a"], [], None, ["b", "c"], ["d"]], pa.list_(pa.string())),
            "kind": pa.array(["x", "y", "x", None, "y"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    out = tmp_path / "v.parquet"
    embed_file(model, tmp_path / "in.parquet", out, keep=["when", "tags", "kind"], chunk=2)
    found = pq.read_table(out)
    assert found.column("when").combine_chunks() == table.column("when").combine_chunks()
    assert found.column("tags").to_pylist() == table.column("tags").to_pylist()
    assert found.column("kind").to_pylist() == ["x", "y", "x", None, "y"]

    # In JSON a column's type is that of all its values; null and absent are the same.
    lines = [{"text": "a", "x": 1}, {"text": "b"}, {"text": "c", "x": 2.5}, {"text": "", "x": None}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    embed_file(model, tmp_path / "in.jsonl", tmp_path / "w.parquet", keep=["x"], chunk=1)
    assert pq.read_table(tmp_path / "w.parquet").column("x").to_pylist() == [1.0, None, 2.5, None]


def test_options_of_encode(tiny: BuildModel, tmp_path: Path) -> None:
    document = preset("quantile", layers=3, q=0.4, profiles={"mild": {"steps": [{"q": 0.1}]}})
    (tmp_path / "policy.json").write_text(json.dumps(document))
    source = write_input(tmp_path / "in.jsonl", "body")
    model = tokprune_rt.load(tiny("bert"), policy=document, precision="int8")
    chosen = ["--policy", tmp_path / "policy.json", "--profile", "mild", "--precision", "int8"]
    out = tmp_path / "v.npy"
    chosen += ["--normalize", "--column", "body", "--chunk", 16, "--threads", 1]
    result = run("embed", tiny("bert"), source, out, *chosen)
    assert "150 texts x 64" in result.stderr and result.stdout == ""
    assert np.array_equal(np.load(out), model.encode(TEXTS, True, profile="mild"))
    facts = json.loads((tmp_path / "v.npy.json").read_text())
    assert facts["policy_hash"] == model.policy_hash and facts["profile"] == "mild"
    assert facts["precision"] == "int8" and facts["normalized"] is True
    # A finished job is left alone; another one does not replace it.
    before = out.stat().st_mtime_ns
    assert "by earlier runs" in run("embed", tiny("bert"), source, out, *chosen).stderr
    refused = run("embed", tiny("bert"), source, out, *chosen[4:], code=2).stderr
    assert "made by another job" in refused and "profile was 'mild', is None" in refused
    assert out.stat().st_mtime_ns == before
    # The policy's own numbers have two names, which are the same job.
    own = tmp_path / "own.npy"
    assert embed_file(model, source, own, column="body").found == 0
    assert embed_file(model, source, own, column="body", profile="default").found == 150


def test_refused_names(model: Any, tiny: BuildModel, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.txt")
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        embed_file(model, tmp_path / "none.txt", tmp_path / "v.npy")
    with pytest.raises(ValueError, match="is not a file"):
        embed_file(model, tmp_path, tmp_path / "v.npy")
    (tmp_path / "w.npy").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"w\.npy exists"):
        embed_file(model, source, tmp_path / "w.npy")
    (tmp_path / "x.npy.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"x\.npy\.json exists and does not describe vectors"):
        embed_file(model, source, tmp_path / "x.npy")
    head = tokprune_rt.load(tiny("bert", "token-classification"))
    with pytest.raises(ValueError, match="no sentence embedding"):
        embed_file(head, source, tmp_path / "v.npy")
    assert names(tmp_path) == {"in.txt", "w.npy", "x.npy.json"}
    assert (tmp_path / "w.npy").read_bytes() == b"mine"
    line = run("embed", tiny("bert"), tmp_path / "none.txt", tmp_path / "v.npy", code=2).stderr
    assert len(line.splitlines()) == 1 and "none.txt: No such file" in line
    # Not even root can make a folder there.
    assert "/proc" in run("embed", tiny("bert"), source, "/proc/v.npy", code=2).stderr


def test_missing_projects_are_named(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyarrow", "ray", "pyspark"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "in.parquet").write_bytes(b"")
    (tmp_path / "in.txt").write_text("a")
    for source, output in (("in.parquet", "v.npy"), ("in.txt", "v.parquet")):
        with pytest.raises(ImportError, match=r'pip install "tokprune-rt\[parquet\]"'):
            embed_file(model, tmp_path / source, tmp_path / output)
    embed_file(model, tmp_path / "in.txt", tmp_path / "v.npy")
    from tokprune_rt.integrations.ray import TokpruneEmbedder
    from tokprune_rt.integrations.spark import embedding_udf

    with pytest.raises(ImportError, match=r'pip install "tokprune-rt\[ray\]"'):
        TokpruneEmbedder(model.folder)
    with pytest.raises(ImportError, match=r'pip install "tokprune-rt\[spark\]"'):
        embedding_udf(model.folder)


def test_input_that_changes(model: Any, vectors: Any, tmp_path: Path) -> None:
    source, out = write_input(tmp_path / "in.txt"), tmp_path / "v.npy"
    content = source.read_bytes()

    def change(done: int, total: int) -> None:
        if done == 64:
            source.write_bytes(content.replace(b"fox", b"dog"))

    with pytest.raises(ValueError, match=r"in\.txt changed while it was read"):
        embed_file(model, source, out, chunk=32, on_progress=change)
    with pytest.raises(ValueError, match="differs: input_sha256 was"):
        embed_file(model, source, out, chunk=32)

    # With its old content, under any time, the job goes on.
    source.write_bytes(content)

    def touch(done: int, total: int) -> None:
        os.utime(source, (done, done))

    done = embed_file(model, source, out, chunk=32, on_progress=touch)
    assert done.found == 64 and np.array_equal(np.load(out), vectors)


def test_progress(model: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = write_input(tmp_path / "in.txt")

    def count(done: int, total: int) -> None:
        seen.append((done, total))

    embed_file(model, source, tmp_path / "v.npy", chunk=60, on_progress=count)
    assert seen == [(0, 150), (60, 150), (120, 150), (150, 150)]


def test_log_of_a_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tokprune_rt.cli import console

    clock = iter([0.0, 30.0, 60.0, 100.0, 130.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with console.job_bar("embedding") as count:
        for done in (500, 800, 1100, 1200, 1800):
            count(done, 10_500)
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 1,100 of 10,500, 10/s, 0:15:40 left",
        "embedding: 1,800 of 10,500, 10/s, 0:14:30 left",
    ]


def test_reader_is_at_most_a_chunk_ahead(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_input(tmp_path / "in.jsonl")
    read = encoded = scans = 0
    rows, encode = Source.rows, model.encode

    def counted(self: Source) -> Iterator[Any]:
        nonlocal read, scans
        read, scans = 0, scans + 1
        for row in rows(self):
            read += 1
            yield row

    def checked(texts: list[str], *arguments: Any, **options: Any) -> Any:
        nonlocal encoded
        if scans == 2:
            assert len(texts) <= 20 and read == encoded + len(texts)
            encoded += len(texts)
        return encode(texts, *arguments, **options)

    monkeypatch.setattr(Source, "rows", counted)
    monkeypatch.setattr(model, "encode", checked)
    embed_file(model, source, tmp_path / "v.npy", chunk=20)
    assert (encoded, scans) == (150, 2)


def test_chunks_of_long_texts_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CHARACTERS", 1000)
    lines = ["x" * 10] * 5 + ["y" * 900] * 4 + ["z"] * 3
    (tmp_path / "in.txt").write_text("\n".join(lines))
    parts = list(chunks(Source(tmp_path / "in.txt", "text", ()).rows(), 8, 0))
    assert [len(part.texts) for part in parts] == [7, 2, 3]
    assert [(part.first, part.last) for part in parts] == [(1, 7), (8, 9), (10, 12)]


@pytest.mark.parametrize("ending", ["jsonl", "csv.gz", "parquet"])
def test_memory_of_reading(ending: str, tmp_path: Path) -> None:
    """Ten times the rows take no more memory."""
    pa = pytest.importorskip("pyarrow") if ending == "parquet" else None
    peaks = []
    for count in (2_000, 20_000):
        source = Source(_long_input(tmp_path / f"{count}.{ending}", count), "text", ())
        tracemalloc.start()
        assert scan(source, 500).rows == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if pa is not None:
            before = pa.total_allocated_bytes()
            peak += max(pa.total_allocated_bytes() - before for _ in source.rows())
        peaks.append(peak)
    assert peaks[1] < peaks[0] * 1.1 + 100_000 < 5_000_000


def _long_input(path: Path, count: int) -> Path:
    texts = [f"{i:06d} " + "a" * 500 for i in range(count)]
    if path.suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"text": texts}), path, row_group_size=2_000)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(["text", *texts]).encode(), 1))
    else:
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path
