"""Several processes, each with the model, for one long list of inputs."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tokprune_rt.progress import progress

_LARGEST_CHUNK = 5000
# For each process, pickled chunks that wait for it or have been answered: a copy of the inputs.
_CHUNKS_AHEAD = 4


class Pool(dict[str, Any]):
    """``{"input", "output", "processes"}``, the queues and the processes.

    Attributes:
        lock: held by the one call that uses the pool.
        run: the number of the call whose tasks are worked on, in memory that processes share.
    """

    def __init__(self, run: Any, **parts: Any) -> None:
        super().__init__(parts)
        self.lock, self.run = threading.Lock(), run


def start(model: Any, workers: int) -> Pool:
    """Start processes that each load a copy of ``model``, an object with a method ``infer``."""
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    # Without a lock, which a process that is killed could keep.
    current = context.Value("Q", 0, lock=False)
    processes = [
        context.Process(target=_work, args=(model, tasks, results, current), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    return Pool(current, input=tasks, output=results, processes=processes)


def stop(pool: Pool) -> None:
    """End the processes of a pool."""
    for process in pool["processes"]:
        process.terminate()
    for process in pool["processes"]:
        process.join()
        process.close()
    pool["input"].cancel_join_thread()
    pool["input"].close()
    pool["output"].close()


def _work(model: Any, tasks: Any, results: Any, current: Any) -> None:
    # A terminal sends Ctrl-C to every process; it is for the caller, who can go on with the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        run, number, task = tasks.get()
        if run != current.value:
            continue  # of a call that has ended without its results
        try:
            inputs, options = pickle.loads(task)
            results.put((run, number, model.infer(inputs, **options)))
        except Exception as err:
            results.put((run, number, _portable(err)))


def _portable(error: Exception) -> Exception:
    """The error itself when it survives the way through the queue, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def run(
    pool: Pool,
    inputs: Sequence[Any],
    chunk_size: int | None,
    show: bool,
    options: dict[str, Any],
    join: Callable[[list[Any]], Any],
) -> Any:
    """Send ``inputs`` in chunks through a pool and join the results in order.

    Calls of several threads take turns. Raises ValueError for a chunk size below 1, what pickle
    raises of inputs that cannot go to a process, what a worker raised, and RuntimeError when one
    died.
    """
    if chunk_size is None:
        share = math.ceil(len(inputs) / len(pool["processes"]) / 10)
        chunk_size = max(1, min(share, _LARGEST_CHUNK))
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    starts = range(0, len(inputs), chunk_size)
    found: list[Any] = [None] * len(starts)
    with pool.lock, _numbered(pool) as run, progress(len(inputs), show) as advance:

        def receive() -> None:
            number, result = _next(pool, run)
            found[number] = result
            advance(min(chunk_size, len(inputs) - number * chunk_size))

        ahead = _CHUNKS_AHEAD * len(pool["processes"])
        for number, first in enumerate(starts):
            # Pickled here, where it can raise: the queue's own thread would drop what it cannot
            # pickle.
            task = pickle.dumps((inputs[first : first + chunk_size], options))
            pool["input"].put((run, number, task))
            if number >= ahead:
                receive()
        for _ in starts[-ahead:]:
            receive()
    for result in found:
        if isinstance(result, Exception):
            raise result
    return join(found)


@contextmanager
def _numbered(pool: Pool) -> Iterator[int]:
    """A new number for a call; afterwards what is left of its tasks is passed over."""
    pool.run.value += 1
    try:
        yield pool.run.value
    finally:
        pool.run.value += 1


def _next(pool: Pool, wanted: int) -> tuple[int, Any]:
    """The number of a chunk and its result; those of calls that were interrupted are dropped."""
    while True:
        try:
            run, number, result = pool["output"].get(timeout=1.0)
            if run == wanted:
                return number, result
        except queue.Empty:
            dead = [process.exitcode for process in pool["processes"] if not process.is_alive()]
            if dead:
                raise RuntimeError(
                    f"{len(dead)} of the pool's processes died (exit codes {dead}); stop the pool "
                    "and start a new one"
                ) from None
