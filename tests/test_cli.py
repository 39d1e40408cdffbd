"""The command line: every command and its errors."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BuildModel
from policy_documents import needed
from typer.main import get_command
from typer.testing import CliRunner

import tokprune_rt
from tokprune_rt.cli.app import app
from tokprune_rt.cli.files import lines_of
from tokprune_rt.cli.options import parse_settings
from tokprune_rt.cli.words import layer_names, policy_words
from tokprune_rt.policy import PRESETS, parse_policy, preset

COMMANDS = ("demo", "encode", "embed", "predict", "explain", "info", "export", "serve", "bench")
MINILM = "all-MiniLM-L6-v2"
LINES = ["The first text.", "", "  Ein zweiter Text, l\u00e4nger als der erste. ", "a" * 300]


def run(*arguments: object, code: int = 0, stdin: str | None = None) -> Any:
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    assert result.exit_code == code, (result.output, result.stderr)
    return result


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(line + "\n" for line in LINES), encoding="utf-8")
    return path


def test_help_names_every_command_and_gives_examples() -> None:
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)
    for command in COMMANDS:
        text = run(command, "--help").stdout
        assert "Examples" in text and f"tokprune {command}" in text
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "command", [*COMMANDS, "finetune", "train", "evaluate", "calibrate", "distil"]
)
def test_examples_of_help_are_whole_lines(command: str) -> None:
    """So that they can be copied from a terminal of 80 columns."""
    found = inspect.getdoc(get_command(app).commands[command].callback) or ""  # type: ignore[attr-defined]
    examples = re.split(r"\[bold\]Examples?\[/bold\]", found)[1]
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    shown = [line.strip() for line in run(command, "--help").stdout.splitlines()]
    assert lines and all(line in shown for line in lines)


def test_version() -> None:
    assert run("--version").stdout.strip() == f"tokprune-rt {tokprune_rt.__version__}"


def test_missing_extra_is_named() -> None:
    script = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('typer', 'rich') else find(name, *a)\n"
        "from tokprune_rt.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "tokprune-rt[cli]"' in done.stderr and "Traceback" not in done.stderr


def test_library_does_not_import_the_command_line() -> None:
    script = (
        "import sys, tokprune_rt; tokprune_rt.load; print({'typer', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


# encode


def test_encode_to_npy(lines_file: Path, minilm: Any, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    result = run("encode", MINILM, lines_file, "-o", out)
    found = np.load(out)
    assert found.dtype == np.float32 and np.array_equal(found, minilm.encode(LINES))
    assert result.stdout == "" and "4 texts x 384" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lines.txt", "v.npy"]


def test_encode_to_jsonl_keeps_every_bit(lines_file: Path, minilm: Any, tmp_path: Path) -> None:
    out = tmp_path / "v.jsonl"
    run("encode", MINILM, lines_file, "-o", out, "--normalize")
    records = json_lines(out.read_text(encoding="utf-8"))
    assert [record["text"] for record in records] == LINES
    found = np.array([record["embedding"] for record in records], np.float32)
    assert np.array_equal(found, minilm.encode(LINES, normalize_embeddings=True))


def test_encode_from_standard_input_to_standard_output(minilm: Any) -> None:
    result = run("encode", MINILM, "-", stdin="one\ntwo")
    found = [record["embedding"] for record in json_lines(result.stdout)]
    assert np.array_equal(np.array(found, np.float32), minilm.encode(["one", "two"]))


def test_encode_under_a_policy(lines_file: Path, minilm_folder: Path, tmp_path: Path) -> None:
    document = preset("quantile", layers=6, q=0.3, profiles={"mild": {"steps": [{"q": 0.1}]}})
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(document))
    model = tokprune_rt.load(minilm_folder, policy=document)
    out = tmp_path / "v.npy"
    for profile in (None, "mild", "off", "default"):
        chosen = ["--profile", profile] if profile else []
        run("encode", MINILM, lines_file, "-o", out, "--policy", path, *chosen, "--threads", 1)
        assert np.array_equal(np.load(out), model.encode(LINES, profile=profile))
    run("encode", MINILM, lines_file, "-o", out, "--preset", "quantile", "--set", "q=0.3")
    assert np.array_equal(np.load(out), model.encode(LINES))


def test_encode_tables_and_json_lines(minilm: Any, tmp_path: Path) -> None:
    rows = [{"id": "1", "body": 'with "quotes", commas\nand lines'}, {"id": "2", "body": "plain"}]
    texts = [row["body"] for row in rows]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["id", "body"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    for name in ("a.csv", "a.jsonl"):
        records = json_lines(run("encode", MINILM, tmp_path / name, "--column", "body").stdout)
        found = np.array([record.pop("embedding") for record in records], np.float32)
        assert records == rows
        assert np.array_equal(found, minilm.encode(texts))


def test_encode_of_nothing(tmp_path: Path) -> None:
    run("encode", MINILM, "-", "-o", tmp_path / "v.npy", stdin="")
    assert np.load(tmp_path / "v.npy").shape == (0, 384)


def test_lines_end_at_line_feeds_only() -> None:
    assert lines_of("a\u2028b\x0bc\r\n\nd") == ["a\u2028b\x0bc", "", "d"]
    assert lines_of("") == []


def test_failure_leaves_the_old_file(tmp_path: Path, lines_file: Path) -> None:
    out = tmp_path / "v.npy"
    out.write_bytes(b"old")
    result = run("encode", MINILM, lines_file, "-o", out, "--no-truncate", code=0)
    old = out.read_bytes()
    lines_file.write_text("short\n" + "word " * 400)
    result = run("encode", MINILM, lines_file, "-o", out, "--no-truncate", code=2)
    assert "text 1 has" in result.stderr
    assert out.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lines.txt", "v.npy"]


def test_links_and_pipes_are_not_replaced(tmp_path: Path, minilm: Any) -> None:
    real, link, pipe = (tmp_path / name for name in ("real.npy", "link.npy", "pipe.npy"))
    link.symlink_to(real)
    run("encode", MINILM, "-", "-o", link, stdin="one\ntwo")
    assert link.is_symlink() and np.array_equal(np.load(real), minilm.encode(["one", "two"]))
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        run("encode", MINILM, "-", "-o", pipe, stdin="one")
        assert pipe.is_fifo() and reader.read() == _npy(minilm.encode(["one"]))


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# predict


def test_predict_classes(tiny: BuildModel, tmp_path: Path) -> None:
    folder = tiny("bert", "sequence-classification")
    model = tokprune_rt.load(folder)
    texts = ["The film was bad.", "Ada Lovelace wrote it."]
    best = json_lines(run("predict", folder, *texts).stdout)
    assert best == [{"text": t, **p} for t, p in zip(texts, model.predict(texts), strict=True)]
    top = json_lines(run("predict", folder, *texts, "--top-k", 3).stdout)
    assert [item["labels"] for item in top] == model.predict(texts, top_k=3)
    name = str(tmp_path)
    assert "is taken" not in run("predict", folder, name).stderr
    (tmp_path / "gold.jsonl").write_text(json.dumps({"text": texts[0], "label": "gold", "n": 1}))
    gold = run("predict", folder, "--input", tmp_path / "gold.jsonl")
    assert "what the records had as 'label' gave way" in gold.stderr
    assert json_lines(gold.stdout)[0]["n"] == 1
    (tmp_path / "file.txt").write_text("a text")
    assert "--input " in run("predict", folder, tmp_path / "file.txt").stderr
    raw = json_lines(run("predict", folder, *texts, "--raw-scores").stdout)
    logits = np.array([item["logits"] for item in raw], np.float32)
    assert np.array_equal(logits, model.predict(texts, raw_scores=True))

    pairs = [(t, "The cat sleeps.") for t in texts]
    expected = model.predict(pairs, raw_scores=True)
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"text": a, "text_pair": b, "n": 1}) for a, b in pairs))
    for arguments in (
        [*texts, "--pair", "The cat sleeps."],
        [*texts, "--pair", "The cat sleeps.", "--pair", "The cat sleeps."],
        ["--input", file],
    ):
        raw = json_lines(run("predict", folder, *arguments, "--raw-scores").stdout)
        assert all(item["text_pair"] == "The cat sleeps." for item in raw)
        assert np.array_equal(np.array([i["logits"] for i in raw], np.float32), expected)

    # As in GLUE's tables: quotes are part of the text.
    quoted = [('"A fox', 'He said "yes".'), ('It is "red".', "No.")]
    table = tmp_path / "pairs.tsv"
    table.write_text("\n".join(map("\t".join, [("#1 String", "#2 String"), *quoted])))
    columns = ["--field", "#1 String", "--pair-field", "#2 String"]
    bad = run("predict", folder, "--input", table, *columns[:3], "#3 String", code=2).stderr
    assert "no field '#3 String' for --pair-field, only '#1 String', '#2 String'" in bad
    raw = json_lines(run("predict", folder, "--input", table, *columns, "--raw-scores").stdout)
    assert [(item["#1 String"], item["#2 String"]) for item in raw] == quoted
    found = np.array([item["logits"] for item in raw], np.float32)
    assert np.array_equal(found, model.predict(quoted, raw_scores=True))


def test_predict_entities_and_answers(tiny: BuildModel, tmp_path: Path) -> None:
    folder = tiny("bert", "token-classification")
    text = "Turing worked in Manchester."
    out = tmp_path / "entities.jsonl"
    run("predict", folder, text, "-o", out)
    expected = tokprune_rt.load(folder).tag(text, aggregation_strategy="simple")
    assert json_lines(out.read_text()) == [{"text": text, "entities": expected}]

    folder = tiny("bert", "question-answering")
    question = "Where did Turing work?"
    result = run("predict", folder, question, "--pair", text, "--top-k", 2)
    expected = tokprune_rt.load(folder).answer(question, text, top_k=2)
    assert json_lines(result.stdout)[0]["answers"] == expected
    single = json_lines(run("predict", folder, question, "--pair", text).stdout)[0]
    assert single["answer"] == expected[0]["answer"]


# info, export


def test_info_of_machine_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts["version"] == tokprune_rt.__version__ and facts["isa"] in facts["isa_levels"]
    text = run("info", MINILM, "--preset", "lat", "--profile", "fast").stdout
    assert "BertModel" in text and "85% / 72.2%" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    facts = json.loads(run("info", MINILM, "--preset", "lat", "--json").stdout)
    assert (facts["layers"], facts["max_tokens"], facts["dimension"]) == (6, 256, 384)
    assert facts["precision"] in ("fp32", "bf16x3")
    assert json.loads(run("info", "--isa", "scalar", "--json").stdout)["isa"] == "scalar"
    monkeypatch.setenv("TOKPRUNE_ISA", "sse9")
    assert "TOKPRUNE_ISA is 'sse9', which is no level of this machine" in run("info").stderr
    monkeypatch.delenv("TOKPRUNE_ISA")
    assert "isa 'sse9' is not" in run("info", "--isa", "sse9", code=2).stderr
    model = tokprune_rt.load(MINILM, policy=preset("lat", layers=6))
    assert facts["policy_hash"] == model.policy_hash and facts["profiles"] == ["off", "fast"]


def test_export(tiny: BuildModel, tmp_path: Path) -> None:
    folder, out = tiny("bert"), tmp_path / "copy"
    run("export", folder, out, "--preset", "top-p", "--set", "p=0.8")
    model = tokprune_rt.load(out)
    assert model.policy == parse_policy(preset("top-p", layers=3, p=0.8))
    again = tmp_path / "again"
    assert model.policy_hash[:12] in run("export", out, again).stdout
    assert tokprune_rt.load(again).policy == model.policy
    assert "empty folder" in run("export", out, again, code=2).stderr


def test_every_preset_has_words() -> None:
    for name in PRESETS:
        extra = needed(name, 6)
        policy = parse_policy(preset(name, layers=6, skip_below=9, max_tokens=99, **extra))
        words = policy_words(policy)
        assert "score" in " ".join(words) and "texts under 9 tokens are not pruned" in words
        assert policy_words(policy, "off") == ["every token stays"]
    assert layer_names([1, 2, 3, 5, 7, 8]) == "layers 1-3, 5, 7-8"
    scaled = preset("ltp", layers=3, profiles={"fast": {"theta_scale": 2}})
    before, after = (policy_words(parse_policy(scaled), p)[0] for p in (None, "fast"))
    assert "0.1667 / 0.3333" in before and "0.3333 / 0.6667" in after


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    np.save(tmp_path / "b.npy", np.arange(3.0))
    found = parse_settings(
        ["q=0.2", "a-b=[1]", "word=drop", f"file=@{tmp_path}/a.json", f"rows=@{tmp_path}/b.npy"]
    )
    assert found.pop("rows").tolist() == [0, 1, 2]
    assert found == {"q": 0.2, "a_b": [1], "word": "drop", "file": [1, 2]}


# errors

BAD: list[tuple[list[object], str]] = [
    (["encode", "./nowhere", "-"], "there is no folder"),
    (["encode", MINILM, "nowhere.txt"], "nowhere.txt: No such file"),
    (["encode", MINILM, "-", "-o", "v.txt"], "must end in .npy or .jsonl"),
    (["encode", MINILM, "-", "-o", "nowhere/v.npy"], "there is no folder nowhere"),
    (["encode", MINILM, "-", "--format", "xml"], "unknown format 'xml'"),
    (["encode", MINILM, "-", "--format", "jsonl"], "line 1: not valid JSON"),
    (["encode", MINILM, "-", "--format", "csv"], "no field 'text'"),
    (["encode", MINILM, "-", "--preset", "magic"], "unknown preset 'magic'"),
    (["encode", MINILM, "-", "--preset", "lat", "--policy", "off"], "not both"),
    (["encode", MINILM, "-", "--set", "q=1"], "add --preset"),
    (["encode", MINILM, "-", "--preset", "lat", "--set", "q"], "KEY=VALUE"),
    (["encode", MINILM, "-", "--preset", "lat", "--set", "q=1"], "parameters of lat: length_con"),
    (["encode", MINILM, "-", "--preset", "topk", "--set", "k=[1"], "not valid JSON"),
    (["encode", MINILM, "-", "--policy", "nowhere.json"], "nowhere.json"),
    (["encode", MINILM, "-", "--profile", "fast"], "unknown profile 'fast'"),
    (["encode", MINILM, "-", "--isa", "mmx"], "mmx"),
    (["encode", MINILM, "-", "--threads", "0"], "threads must be at least 1"),
    (["encode", MINILM, "-", "--prompt-name", "query"], "unknown prompt_name"),
    (["predict", MINILM, "a text"], "needs a model with a head"),
    (["predict", MINILM], "nothing to predict"),
    (["predict", MINILM, "a", "b", "c", "--pair", "d", "--pair", "e"], "2 times for 3 texts"),
    (["explain", MINILM, "text", "--profile", "fast"], "unknown profile"),
    (["explain", MINILM, "text", "--png", "."], "is a folder"),
    (["export", MINILM, "copy"], "no policy"),
    (["info", "--preset", "lat"], "give a MODEL"),
    (["bench", "--shape", "huge"], "unknown shape 'huge'"),
    (["bench", "--peer", "none", "--peer", "torch"], "excludes"),
    (["bench", "--json", "nowhere/a.json"], "there is no folder nowhere"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_errors_are_one_line(
    arguments: list[object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=2, stdin="plain\nlines")
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_debug_lets_the_error_through() -> None:
    result = CliRunner().invoke(app, ["--debug", "encode", "./nowhere", "-"])
    assert isinstance(result.exception, FileNotFoundError)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "not UTF-8" in run("encode", MINILM, tmp_path / "latin.txt", code=2).stderr


# bench


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    bench = ("bench", "--shape", "minilm", "--workload", "1x16", "--peer", "none", "--rounds", 1)
    result = run(*bench, "--json", out)
    assert "packed pruned" in result.stdout and "wrote" in result.stderr
    assert {row["mode"] for row in json.loads(out.read_text())["rows"]} >= {"packed dense"}
    assert out.stat().st_size > 500

    def wrong(*arguments: object, **_: object) -> None:
        raise tokprune_rt.bench.VerificationError("states differ")

    monkeypatch.setattr("tokprune_rt.bench.run_bench", wrong)
    assert "a result is wrong: states differ" in run(*bench, code=1).stderr
