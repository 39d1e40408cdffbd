"""What the concurrency tests run in other processes: results of a random model as a digest."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import random_model as rm

SIZES = (80, 1, 33, 17, 64, 2, 48)
NAMES = (None, "threshold drop mid", "threshold_rel restore post", "topk package mid")
CHILD_SECONDS = 60


def model(threads: int) -> Any:
    from tokprune_rt import _core

    shape = rm.config()
    return _core.Encoder(shape, rm.tensors(shape), threads)


def digest(encoder: Any, seed: int = 0) -> str:
    """Hash over every output of one batch, dense and under several plans."""
    from tokprune_rt import _core

    shape = rm.config()
    batch = [rm.tokens(shape, size, seed + i) for i, size in enumerate(SIZES)]
    state = hashlib.sha256()
    for name in NAMES:
        plan = None if name is None else _core.Plan(rm.plans()[name])
        out = rm.forward(encoder, batch, plan=plan)
        for key in ("hidden", "positions", "cu_kept", "pooled", "logits", "kept"):
            state.update(out[key].tobytes())
    return state.hexdigest()


def fresh_digest(threads: int) -> str:
    return digest(model(threads))


def _child(encoder: Any, expected: str) -> int:
    """Fork; the child computes on the inherited model. Returns the child's process id."""
    process = os.fork()
    if process:
        return process
    signal.alarm(CHILD_SECONDS)  # a child that hangs dies instead
    same = digest(encoder) == expected
    os._exit(0 if same else 1)


def _check(process: int) -> None:
    _, status = os.waitpid(process, 0)
    assert status == 0, f"child ended with status {status}"


def fork_after_use(threads: int) -> None:
    """Children forked before and after the first call, and a child of a child."""
    encoder = model(threads)
    expected = fresh_digest(1)
    _check(_child(encoder, expected))
    assert digest(encoder) == expected
    _check(_child(encoder, expected))
    process = os.fork()
    if process == 0:
        signal.alarm(CHILD_SECONDS)
        assert digest(encoder) == expected
        _check(_child(encoder, expected))
        os._exit(0)
    _check(process)
    assert digest(encoder) == expected


def fork_during_use(threads: int) -> None:
    """Children forked while other Python threads are inside forward."""
    encoder = model(threads)
    expected = digest(encoder)
    stop = threading.Event()
    wrong: list[str] = []

    def work() -> None:
        while not stop.is_set():
            if digest(encoder) != expected:
                wrong.append("thread")

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(8):
            _check(_child(encoder, expected))
    finally:
        stop.set()
        for worker in workers:
            worker.join(CHILD_SECONDS)
    assert not wrong


def end_during_use(threads: int) -> None:
    """Processes that end while daemon threads are inside forward or wait to return from it."""
    encoder = model(threads)

    def work() -> None:
        while True:
            digest(encoder)

    for _ in range(20):
        process = os.fork()
        if process == 0:
            signal.alarm(CHILD_SECONDS)
            for _ in range(4):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.02)
            sys.exit(0)  # ends the interpreter as the end of a script does; os._exit would not
        _check(process)


def _resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_after_use(threads: int) -> None:
    """Large calls at once leave ``threads`` workspaces behind, not one for each of them."""
    from tokprune_rt import _core

    shape = rm.config(layers=1, hidden=384, heads=12, embedding_size=384, max_positions=512)
    encoder = _core.Encoder(shape, rm.tensors(shape), threads)
    batch = [rm.tokens(shape, 512, seed) for seed in range(8)]
    callers = 12
    together = threading.Barrier(callers)
    loaded = _resident()
    rm.forward(encoder, batch, want="pooled")
    workspace = _resident() - loaded

    def work() -> None:
        for _ in range(3):
            together.wait(CHILD_SECONDS)
            rm.forward(encoder, batch, want="pooled")

    workers = [threading.Thread(target=work) for _ in range(callers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(CHILD_SECONDS)
    left = _resident() - loaded
    assert left < (threads + 2) * workspace, f"{left} bytes after {workspace} for one call"


USES = {
    "after": fork_after_use,
    "during": fork_during_use,
    "end": end_during_use,
    "memory": memory_after_use,
}

if __name__ == "__main__":
    USES[sys.argv[1]](int(sys.argv[2]))
    print("same")
