"""What a long job refuses of its input and its options, and that it leaves nothing behind."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from conftest import BuildModel
from test_jobs import names

import tokprune_rt
from tokprune_rt.jobs import embed_file


@pytest.fixture(scope="module")
def model(tiny: BuildModel) -> Any:
    return tokprune_rt.load(tiny("bert"))


BAD: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("in.jsonl", b'{"text": "a"}\n{"body": "b"}\n', {}, "in.jsonl, line 2: no field 'text'"),
    ("in.jsonl", b'{"text": "a"}\n\n{"text": 5}', {}, "line 3: 'text' is int, not a text"),
    ("in.jsonl", b'{"text": null}', {}, "line 1: 'text' is NoneType"),
    ("in.jsonl", b'{"text": "a"}\n["b"]', {}, "line 2: found list"),
    ("in.jsonl", b'{"text": "a"}\n{"text": ', {}, "line 2: not valid JSON"),
    ("in.jsonl", b"[" * 100_000, {}, "line 1: not valid JSON"),
    ("in.csv", b"id,body\n1,a\n", {}, "line 2: no field 'text', only 'id', 'body'; the first line"),
    ("in.csv", b"id,text\n1,a,b\n", {}, "line 2: more cells"),
    ("in.csv", b'text\na\n"b', {}, "line 3: unexpected end"),
    ("in.tsv", b"id\ttext\n1\n", {}, "line 2: 'text' is NoneType"),
    ("in.txt", b"a\ncaf\xe9\n", {}, "in.txt, line 2: not UTF-8 text"),
    ("in.txt", b"", {}, "in.txt holds no texts"),
    ("in.csv", b"text\n", {}, "in.csv holds no texts"),
    ("in.jsonl", b"\n \n", {}, "in.jsonl holds no texts"),
    ("in.txt.gz", gzip.compress(b"text\n" * 99, mtime=0)[:-9], {}, "gz is not a whole gzip file"),
    ("in.txt.gz", b"plain", {}, "in.txt.gz is not a whole gzip file"),
    ("in.parquet", b"PAR1 not really PAR1", {}, "in.parquet is not a readable Parquet file"),
    ("in.json", b"[]", {}, "in.json: the name must end in one of .jsonl"),
    ("in.parquet.gz", b"", {}, "the name must end in"),
    ("in.txt", b"a", {"output": "v.txt"}, "must end in .npy or .parquet"),
    ("in.txt", b"a", {"output": "no/v.npy"}, "there is no folder"),
    ("in.txt", b"a", {"output": "in.txt/v.npy"}, "there is no folder"),
    ("in.txt", b"a", {"keep": ["id"]}, "no columns to keep 'id' in; write a .parquet"),
    ("in.txt", b"a", {"chunk": 0}, "chunk must be at least 1, got 0"),
    ("in.txt", b"a", {"chunk": True}, "chunk must be an int, got bool"),
    ("in.txt", b"a", {"batch_size": 0}, "batch_size must be at least 1"),
    ("in.txt", b"a", {"profile": "fast"}, "unknown profile 'fast'"),
    ("in.txt", b"a", {"prompt_name": "query"}, "unknown prompt_name 'query'"),
]
_P = "v.parquet"
BAD_COLUMNS: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("in.txt", b"a", {"output": _P, "keep": ["id"]}, "in.txt has no columns"),
    ("in.jsonl", b'{"text": "a"}', {"output": _P, "keep": ["id"]}, "no row has a value in .* 'id'"),
    ("in.csv", b"text\na", {"output": _P, "keep": ["row"]}, "'row' cannot be kept"),
    ("in.csv", b"text,x\na,b", {"output": _P, "keep": ["x", "x"]}, "'x' is kept twice"),
    (
        "in.jsonl",
        b'{"text": "a", "x": 1}\n{"text": "a", "x": "b"}',
        {"output": _P, "keep": ["x"]},
        "line 1 to 2: the column 'x' has values that make no column",
    ),
    (
        "in.jsonl",
        b'{"text": "a", "x": 1}\n{"text": "a", "x": "b"}',
        {"output": _P, "keep": ["x"], "chunk": 1},
        "line 2 to 2: the column 'x' has values that make no column",
    ),
]


@pytest.mark.parametrize(("name", "content", "options", "message"), [*BAD, *BAD_COLUMNS])
def test_what_is_refused(
    name: str, content: bytes, options: dict[str, Any], message: str, model: Any, tmp_path: Path
) -> None:
    if name == "in.parquet" or options.get("output") == _P:
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    output = tmp_path / options.get("output", "v.npy")
    rest = {key: value for key, value in options.items() if key != "output"}
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        embed_file(model, tmp_path / name, output, **rest)
    assert names(tmp_path) == {name}


def test_refused_parquet_rows(model: Any, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": ["a"] * 2000 + [None], "n": range(2001)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=700)
    for column, message in (
        ("text", "in.parquet, row 2000: 'text' is NoneType, not a text"),
        ("n", "in.parquet, row 0: 'n' is int, not a text"),
        ("body", "no column 'body'; it has 'text', 'n'"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_file(model, tmp_path / "in.parquet", tmp_path / "v.npy", column=column)
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    pq.write_table(twice, tmp_path / "in.parquet")
    with pytest.raises(ValueError, match="more than one column 'text'"):
        embed_file(model, tmp_path / "in.parquet", tmp_path / "v.npy")
    assert names(tmp_path) == {"in.parquet"}
