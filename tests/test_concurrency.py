"""One model in several threads and processes at once gives the bits of one caller."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import engine_process
import pytest

from tokprune_rt import _core

TIMEOUT = 120


@pytest.fixture(scope="module")
def expected() -> str:
    return engine_process.fresh_digest(threads=1)


def test_digest_tells_batches_apart() -> None:
    encoder = engine_process.model(1)
    assert engine_process.digest(encoder, seed=0) != engine_process.digest(encoder, seed=100)


@pytest.mark.parametrize("threads", [2, 3, 4, 9])
def test_threads_do_not_change_a_bit(threads: int, expected: str) -> None:
    encoder = engine_process.model(threads)
    assert encoder.threads == threads
    for _ in range(5):
        assert engine_process.digest(encoder) == expected


def test_default_threads(expected: str) -> None:
    encoder = engine_process.model(0)
    assert encoder.threads == _core.default_threads() >= 1
    assert engine_process.digest(encoder) == expected


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_python_threads_share_a_model(threads: int) -> None:
    callers, rounds = 6, 4
    encoder = engine_process.model(threads)
    alone = [engine_process.digest(encoder, seed) for seed in range(callers)]
    together = threading.Barrier(callers)

    def work(caller: int) -> list[str]:
        together.wait(TIMEOUT)
        return [engine_process.digest(encoder, (caller + step) % callers) for step in range(rounds)]

    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(work, caller) for caller in range(callers)]
        for caller, future in enumerate(futures):
            wanted = [alone[(caller + step) % callers] for step in range(rounds)]
            assert future.result(timeout=TIMEOUT) == wanted


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("when", ["after", "during"])
def test_forked_children_use_the_model(when: str, threads: int) -> None:
    run_script(when, threads)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_process_ends_while_daemon_threads_compute(threads: int) -> None:
    run_script("end", threads)


def test_calls_at_once_give_their_memory_back() -> None:
    run_script("memory", 1)


def run_script(use: str, threads: int) -> None:
    # In a process of its own: forking this one would copy every other library's threads as well.
    script = Path(engine_process.__file__)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), use, str(threads)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "same\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_processes(method: str, expected: str) -> None:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(engine_process.fresh_digest, 2).result(timeout=TIMEOUT) == expected


def test_a_model_is_released_while_idle_threads_wait() -> None:
    """Models come and go: their worker threads end with them."""
    before = _thread_count()
    for threads in (2, 4, 8):
        encoder = engine_process.model(threads)
        engine_process.digest(encoder)
        del encoder
    assert _thread_count() <= before


def _thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))
