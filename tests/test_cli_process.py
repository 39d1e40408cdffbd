"""The command line in a process of its own: pipes, colours, signals, tracebacks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from tokprune_rt.cli.app import app

MINILM = "all-MiniLM-L6-v2"
ESCAPE = "\x1b"


def real(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, its output in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "tokprune_rt.cli", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env=plain_environment() | environment,
    )


def plain_environment() -> dict[str, str]:
    dropped = ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TOKPRUNE_DEBUG", "TTY_COMPATIBLE")
    return {key: value for key, value in os.environ.items() if key not in dropped}


def test_traceback_only_on_demand() -> None:
    done = real("encode", "./nowhere", "-", TOKPRUNE_DEBUG="1")
    assert "Traceback" in done.stderr
    done = real("encode", "./nowhere", "-")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_demo_in_a_pipe(minilm_folder: Path) -> None:
    done = real("demo", "--rounds", 1)
    assert done.returncode == 0, done.stderr
    assert ESCAPE not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r" +$", done.stdout, re.MULTILINE)
    for heading in ("Tokens left after each layer", "Most similar pairs", "Cost", "Where tokens"):
        assert heading in done.stdout
    assert "contract / lease (long)" in done.stdout and "x as fast" in done.stdout


def test_demo_under_another_policy(minilm_folder: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--rounds", "1", "--policy", "off"])
    assert result.exit_code == 0 and "both columns are dense" in result.stderr
    chosen = ["--preset", "top-p", "--set", "p=0.9"]
    result = CliRunner().invoke(app, ["demo", "--rounds", "1", *chosen])
    assert "hold 90% of the unprotected score" in result.stdout


def test_explain_colours_are_kept_on_demand(minilm_folder: Path) -> None:
    arguments = ("explain", MINILM, "one two three four five", "--preset", "lat")
    assert ESCAPE not in real(*arguments).stdout
    coloured = real(*arguments, FORCE_COLOR="1", COLORTERM="truecolor", TERM="xterm").stdout
    assert f"{ESCAPE}[" in coloured and "48;2;" in coloured
    assert ESCAPE not in real(*arguments, LC_ALL="C", PYTHONUTF8="0").stderr


def test_reader_that_leaves() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tokprune_rt.cli", "encode", MINILM, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=plain_environment(),
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(b"short\n" * 2000)
    process.stdin.close()
    assert process.stdout.readline().startswith(b'{"text": "short"')
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1 and errors == b""


def test_interrupt(tmp_path: Path) -> None:
    source, out = tmp_path / "lines.txt", tmp_path / "v.jsonl"
    source.write_text(("many words that take their time " * 9 + "\n") * 20_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "tokprune_rt.cli", "encode", MINILM, str(source), "-o", str(out)],
        stderr=subprocess.PIPE,
        env=plain_environment(),
        # A shell starts what runs in the background deaf to this signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr
    while process.poll() is None and not list(tmp_path.glob(".*.tmp")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == b"error: interrupted\n"
    process.stderr.close()
    assert list(tmp_path.iterdir()) == [source]
