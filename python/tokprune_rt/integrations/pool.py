"""Several processes, each with the model, for one long list of inputs."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import queue
from collections.abc import Callable, Sequence
from typing import Any

from tokprune_rt.progress import progress

Pool = dict[str, Any]
_LARGEST_CHUNK = 5000


def start(model: Any, workers: int) -> Pool:
    """Start processes that each load a copy of ``model``, an object with a method ``infer``.

    Returns ``{"input", "output", "processes"}``.
    """
    context = multiprocessing.get_context("spawn")
    tasks, results = context.Queue(), context.Queue()
    processes = [
        context.Process(target=_work, args=(model, tasks, results), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    return {"input": tasks, "output": results, "processes": processes}


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


def _work(model: Any, tasks: Any, results: Any) -> None:
    while True:
        number, inputs, options = tasks.get()
        try:
            results.put((number, model.infer(inputs, **options)))
        except Exception as err:
            results.put((number, _portable(err)))


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

    Raises ValueError for a chunk size below 1, what a worker raised, and RuntimeError when one
    died.
    """
    if chunk_size is None:
        share = math.ceil(len(inputs) / len(pool["processes"]) / 10)
        chunk_size = max(1, min(share, _LARGEST_CHUNK))
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    starts = range(0, len(inputs), chunk_size)
    for number, first in enumerate(starts):
        pool["input"].put((number, inputs[first : first + chunk_size], options))
    found: list[Any] = [None] * len(starts)
    with progress(len(inputs), show) as advance:
        for _ in starts:
            number, result = _next(pool)
            found[number] = result
            advance(min(chunk_size, len(inputs) - number * chunk_size))
    for result in found:
        if isinstance(result, Exception):
            raise result
    return join(found)


def _next(pool: Pool) -> Any:
    while True:
        try:
            return pool["output"].get(timeout=1.0)
        except queue.Empty:
            dead = [process.exitcode for process in pool["processes"] if not process.is_alive()]
            if dead:
                raise RuntimeError(
                    f"{len(dead)} of the pool's processes died (exit codes {dead}); stop the pool "
                    "and start a new one"
                ) from None
