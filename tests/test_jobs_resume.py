"""Long jobs that are interrupted: killed at any moment, they end with the same bytes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import BuildModel
from safetensors.numpy import load_file, save_file
from test_cli import run
from test_cli_process import plain_environment

import tokprune_rt
from tokprune_rt.jobs import embed_file
from tokprune_rt.policy import preset

COUNT, CHUNK = 150, 20

# Kills itself, as nothing but a signal can, when a function of os is called for the n-th time.
KILLED = """
import os, signal, sys
name, count = sys.argv[1], int(sys.argv[2])
real, calls = getattr(os, name), 0
def counted(*arguments, **options):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
setattr(os, name, counted)
sys.argv = ["tokprune", *sys.argv[3:]]
from tokprune_rt.cli import main
main()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    words = ("fox", "program", "London", "weather", "film", "1936", "capital")
    lines = [
        json.dumps({"id": f"d{i}", "text": " ".join(words[(i * k) % 7] for k in range(i % 19))})
        for i in range(COUNT)
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    return path


def command(folder: Path, source: Path, out: Path) -> list[object]:
    keep = ["--keep", "id"] if out.suffix == ".parquet" else []
    return ["embed", folder, source, out, "--chunk", CHUNK, *keep]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def done_rows(out: Path) -> int:
    state = out.parent / f".{out.name}.work" / "state.json"
    return int(json.loads(state.read_text())["done"]["rows"]) if state.exists() else 0


# For the head and each of the 8 chunks, the data is synchronised, then the note, which replace
# gives its name: 18 calls and 9. Then come the table (Parquet), the file beside the output, and the
# names of both; rmdir ends the removal of the folder.
MOMENTS = {
    "npy": ["fsync 1", "fsync 2", "fsync 7", "fsync 12", "replace 5", "fsync 19", "replace 10"],
    "parquet": ["fsync 2", "fsync 9", "replace 6", "fsync 19", "fsync 20", "replace 10"],
}
LAST_MOMENTS = ["replace 11", "rmdir 1"]


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_killed_at_any_moment(ending: str, tiny: BuildModel, source: Path, tmp_path: Path) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    whole = tmp_path / "whole"
    whole.mkdir()
    run(*command(tiny("bert"), source, whole / f"v.{ending}"))
    expected = files(whole)
    assert set(expected) == {f"v.{ending}", f"v.{ending}.json"}
    seen = []
    for moment in [*MOMENTS[ending], *LAST_MOMENTS]:
        folder = tmp_path / moment
        folder.mkdir()
        out = folder / f"v.{ending}"
        arguments = [str(item) for item in command(tiny("bert"), source, out)]
        killed = [sys.executable, "-c", KILLED, *moment.split(), *arguments]
        process = subprocess.run(killed, capture_output=True, env=plain_environment())
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert (folder / f".{out.name}.work").is_dir()
        if out.exists():
            assert files_of(folder, out.name) == expected
        seen.append((done_rows(out), out.exists()))
        run(*command(tiny("bert"), source, out))
        assert files(folder) == expected
    assert {rows for rows, _ in seen} >= {0, 60, 80, COUNT}
    assert [complete for _, complete in seen] == [False] * (len(seen) - 1) + [True]


def files_of(folder: Path, name: str) -> dict[str, bytes]:
    return {item: (folder / item).read_bytes() for item in (name, f"{name}.json")}


def test_killed_from_outside_again_and_again(tiny: BuildModel, tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "v.npy"
    source.write_text("".join(f"program {i} of the capital\n" for i in range(6000)))
    arguments = ["embed", tiny("bert"), source, out, "--chunk", 5, "--threads", 1]
    kills, before = 0, -1
    while kills < 3:
        process = subprocess.Popen(
            [sys.executable, "-m", "tokprune_rt.cli", *map(str, arguments)],
            stderr=subprocess.DEVNULL,
            env=plain_environment(),
        )
        while process.poll() is None and done_rows(out) < before + 200 * (kills + 1):
            time.sleep(0.003)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        kills += 1
        assert done_rows(out) > before and not out.exists()
        before = done_rows(out)
    assert f"{before:,} of them by earlier runs" in run(*arguments).stderr
    assert set(files(tmp_path)) == {"in.txt", "v.npy", "v.npy.json"}
    again = tmp_path / "w.npy"
    run(*(again if item == out else item for item in arguments))
    assert again.read_bytes() == out.read_bytes()


class Stop(BaseException):
    """Ends a job from inside, which leaves everything where it is."""


def stopped(model: Any, source: Path, out: Path, rows: int, **options: Any) -> Path:
    """Start a job that ends after ``rows``; its folder."""

    def stop(done: int, total: int) -> None:
        if done >= rows:
            raise Stop

    with pytest.raises(Stop):
        embed_file(model, source, out, chunk=CHUNK, on_progress=stop, **options)
    return out.parent / f".{out.name}.work"


def test_what_was_written_after_the_last_note_is_cut_off(
    tiny: BuildModel, source: Path, tmp_path: Path
) -> None:
    model = tokprune_rt.load(tiny("bert"))
    embed_file(model, source, tmp_path / "whole.npy", chunk=CHUNK)
    work = stopped(model, source, tmp_path / "v.npy", 60)
    with open(work / "data", "ab") as file:
        file.write(b"half a chunk")
    (work / ".state.json.0.tmp").write_bytes(b"half a note")
    done = embed_file(model, source, tmp_path / "v.npy", chunk=CHUNK)
    assert done.found == 60
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not work.exists()


def test_another_job_is_refused_with_what_differs(
    tiny: BuildModel, source: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "model", tmp_path / "v.npy"
    shutil.copytree(tiny("bert"), folder)
    model = tokprune_rt.load(folder)
    work = stopped(model, source, out, 40)
    before = files(work)

    def refused(message: str, other: Any = model, path: Path = source, **options: Any) -> None:
        with pytest.raises(ValueError, match="unfinished job that differs: ") as caught:
            embed_file(other, path, out, **{"chunk": CHUNK, **options})
        assert message in str(caught.value) and str(work) in str(caught.value)

    policy = preset("top-p", layers=3, p=0.5)
    refused("chunk was 20, is 30", chunk=30)
    refused("normalized was False, is True", normalize_embeddings=True)
    refused("profile was None, is 'off'", profile="off")
    refused("column was 'text', is 'id'", column="id")
    refused("policy_hash was 'off', is ", tokprune_rt.load(folder, policy=policy))
    refused("precision was 'fp32', is 'int8'", tokprune_rt.load(folder, precision="int8"))
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1e-3
    save_file(weights, folder / "model.safetensors")
    refused("differs: model_fingerprint was", tokprune_rt.load(folder))
    changed = tmp_path / "in2.jsonl"
    changed.write_text(source.read_text().replace("fox", "dog"))
    refused("input_sha256 was", path=changed)

    # A name is nothing: the same bytes elsewhere are the same input.
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(source.read_bytes())
    assert files(work) == before
    assert embed_file(model, moved, out, chunk=CHUNK, batch_size=3).found == 40


def test_damaged_work_is_refused(tiny: BuildModel, source: Path, tmp_path: Path) -> None:
    model, out = tokprune_rt.load(tiny("bert")), tmp_path / "v.npy"
    work = stopped(model, source, out, 40)
    data = (work / "data").read_bytes()
    (work / "data").write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"has {len(data) - 1} bytes where {len(data)} were"):
        embed_file(model, source, out, chunk=CHUNK)
    (work / "data").write_bytes(data)
    state = (work / "state.json").read_bytes()
    for content in (b"", b"{}", b"[]", state[:50]):
        (work / "state.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.json is damaged .* to start over"):
            embed_file(model, source, out, chunk=CHUNK)
    (work / "state.json").write_bytes(state)
    assert embed_file(model, source, out, chunk=CHUNK).found == 40


def test_one_process_at_a_time(tiny: BuildModel, source: Path, tmp_path: Path) -> None:
    model, out = tokprune_rt.load(tiny("bert")), tmp_path / "v.npy"
    work = stopped(model, source, out, 40)
    with open(work / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match=r"another process is working on .*v\.npy"):
            embed_file(model, source, out, chunk=CHUNK)
    assert embed_file(model, source, out, chunk=CHUNK).found == 40


def test_interrupt_says_how_to_go_on(tiny: BuildModel, tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "v.npy"
    source.write_text("program of the capital\n" * 6000)
    arguments = ["embed", str(tiny("bert")), str(source), str(out), "--chunk", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tokprune_rt.cli", *arguments],
        stderr=subprocess.PIPE,
        env=plain_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr
    while process.poll() is None and done_rows(out) < 10:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    lines = process.stderr.read().decode().splitlines()
    process.stderr.close()
    assert lines == [
        "note: the same command goes on after the last finished chunk",
        "error: interrupted",
    ]
    assert not out.exists() and done_rows(out) >= 10
