"""Pools of processes: every call gets its own results, whatever became of the calls before."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tokprune_rt.integrations import pool


class Doubling:
    """A model that notes in a file what it has worked on."""

    def __init__(self, seen: Path) -> None:
        self.seen = seen

    def infer(self, inputs: list[int]) -> list[int]:
        time.sleep(0.02)
        with self.seen.open("a") as file:
            file.write(f"{inputs[0]}\n")
        return [2 * item for item in inputs]


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    path = tmp_path / "seen"
    path.touch()
    return path


@pytest.fixture
def running(seen: Path) -> Iterator[pool.Pool]:
    found = pool.start(Doubling(seen), 2)
    yield found
    pool.stop(found)


def doubled(running: pool.Pool, inputs: range) -> list[int]:
    found: list[int] = pool.run(running, inputs, 1, False, {}, lambda parts: [*chain(*parts)])
    return found


def at_third(act: Callable[[], object]) -> Any:
    """In the place of `pool._next`, for the first call: act once the workers are at its tasks."""
    plain, calls = pool._next, 0

    def instead(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            act()
        return plain(*arguments)

    return instead


def interrupted() -> None:
    raise KeyboardInterrupt


def test_a_call_after_an_interrupted_one(
    running: pool.Pool, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are its own, and the workers do not go on with what nobody waits for."""
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_next", at_third(interrupted))
        with pytest.raises(KeyboardInterrupt):
            doubled(running, range(1000, 1100))
    assert doubled(running, range(20)) == list(range(0, 40, 2))
    worked_on = [int(line) for line in seen.read_text().split()]
    assert sum(item >= 1000 for item in worked_on) < 50


def test_ctrl_c_leaves_the_workers_alive(running: pool.Pool) -> None:
    """A terminal interrupts them as well."""
    assert doubled(running, range(4)) == [0, 2, 4, 6]
    for process in running["processes"]:
        os.kill(process.pid, signal.SIGINT)
    assert doubled(running, range(20)) == list(range(0, 40, 2))


def test_a_call_after_a_worker_died(running: pool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may still answer it, but never with results of the call that failed."""
    worker = running["processes"][0]

    def killed() -> None:
        worker.kill()
        worker.join()
        raise RuntimeError("died")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_next", at_third(killed))
        with pytest.raises(RuntimeError, match="died"):
            doubled(running, range(1000, 1100))
    try:
        assert doubled(running, range(20)) == list(range(0, 40, 2))
    except RuntimeError as error:
        assert "1 of the pool's processes died" in str(error)


def test_inputs_that_cannot_go_to_a_process(running: pool.Pool) -> None:
    """They are refused, and the pool is as good as before."""
    inputs = [1, 2, threading.Lock()]
    with pytest.raises(TypeError, match="cannot pickle"):
        pool.run(running, inputs, 1, False, {}, lambda parts: parts)
    assert doubled(running, range(20)) == list(range(0, 40, 2))


class Unreadable:
    """Goes into a pickle, and does not come out."""

    def __reduce__(self) -> Any:
        return int, ("nothing",)


def test_inputs_that_a_process_cannot_read(running: pool.Pool) -> None:
    with pytest.raises(ValueError, match="nothing"):
        pool.run(running, [1, Unreadable(), 2], 1, False, {}, lambda parts: parts)
    assert doubled(running, range(20)) == list(range(0, 40, 2))


def test_many_chunks_wait_their_turn(running: pool.Pool) -> None:
    assert doubled(running, range(60)) == list(range(0, 120, 2))


def test_threads_share_a_pool(running: pool.Pool) -> None:
    calls = [range(start, start + 15) for start in range(0, 90, 15)]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda call: doubled(running, call), calls))
    assert found == [[2 * item for item in call] for call in calls]
