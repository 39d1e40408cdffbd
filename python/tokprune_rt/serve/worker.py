"""The thread that runs a model's encoder: the next call starts as soon as the last is done."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tokprune_rt.serve.backlog import Backlog, Batch, rank_of
from tokprune_rt.serve.errors import failed, overloaded, timed_out, unhealthy
from tokprune_rt.serve.jobs import Job, Profile
from tokprune_rt.serve.speed import Adaptive, Speed

if TYPE_CHECKING:
    from tokprune_rt.engine import Engine
    from tokprune_rt.serve.metrics import Metrics


class Worker:
    """Runs jobs on an engine. `submit` and `cancel` may be called from any thread.

    Args:
        engine: the model's engine; its calls release the GIL.
        name: the model's name in metrics.
        budget: tokens per call.
        patience: seconds of work ahead of a job beyond which it is refused.
        speed: measured rates.
        adaptive: the choice of profile.
        metrics: what is counted.
        token_head: whether the model's logits have a row per token.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        budget: int,
        patience: float,
        speed: Speed,
        adaptive: Adaptive,
        metrics: Metrics,
        token_head: bool,
    ) -> None:
        self._token_head = token_head
        self._engine = engine
        self._budget = budget
        self._patience = patience
        self._speed = speed
        self._adaptive = adaptive
        self._backlog = Backlog(budget)
        self._counts = _Counts(metrics, name, budget)
        self._show(metrics, name)
        self._running = 0
        self._closed = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name=f"encoder {name}", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        """Take no more jobs, finish those that were taken, and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> tuple[int, int]:
        """Jobs and tokens that wait."""
        with self._wake:
            return len(self._backlog), self._backlog.tokens

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ServeError: 429 with the seconds to wait when it would be late, 503 after `close`.
        """
        with self._wake:
            if self._closed:
                raise unhealthy("the server is shutting down")
            rate = self._speed.rate(job.profile or self._adaptive.cheapest)
            own = job.tokens / rate
            job.rank = rank_of(job.arrival, job.deadline, own)
            ahead = (self._backlog.ahead(job.rank) + self._running) / rate
            late = ahead > self._patience or job.arrival + ahead > job.deadline
            if late and not job.admitted:
                raise overloaded(
                    f"model is overloaded: {ahead:.1f} s of work are ahead of this request",
                    retry_after=ahead - self._patience,
                )
            self._backlog.add(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Drop what is left of a job; a call that is running is not interrupted."""
        with self._wake:
            job.cancelled = True
            self._backlog.remove(job)
        self._counts.cancelled.inc()

    def _show(self, metrics: Metrics, name: str) -> None:
        """Let the gauges look when they are asked."""
        backlog = self._backlog
        metrics.queue_size.labels(name).set_function(lambda: len(backlog))
        metrics.queue_tokens.labels(name).set_function(lambda: backlog.tokens)
        for profile in self._adaptive.levels:
            gauge = metrics.profile.labels(name, profile.name or "default")
            gauge.set_function(partial(self._in_use, profile))

    def _in_use(self, profile: Profile) -> float:
        return 1.0 if profile == self._adaptive.current else 0.0

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._backlog and not self._closed:
                    self._wake.wait()
                if not self._backlog:
                    return
                now = monotonic()
                late = self._backlog.expired(now)
                batch = self._backlog.take(self._choose)
                self._running = batch.tokens if batch is not None else 0
            for job in late:
                job.error = timed_out(job.deadline - job.arrival)
            _deliver(late)
            if batch is not None:
                _deliver(self._run(batch, now))
                self._running = 0

    def _choose(self) -> Profile:
        return self._adaptive.choose(self._backlog.tokens)

    def _run(self, batch: Batch, now: float) -> list[Job]:
        """Run a call; returns the jobs that it finished."""
        jobs = list(dict.fromkeys(job for job, _ in batch.items))
        for job in jobs:
            if job.done == 0:
                job.queue_seconds = now - job.arrival
        try:
            self._call(batch)
        except Exception as error:
            # Whatever one job has, the others get their results.
            if len(jobs) == 1:
                with self._wake:
                    self._backlog.remove(jobs[0])
                jobs[0].error = failed(f"the encoder failed: {error}")
                return jobs
            parts: list[Job] = []
            for job in jobs:
                items = [item for item in batch.items if item[0] is job]
                part = Batch(batch.work, batch.profile, items, sum(_length(i) for i in items))
                parts += self._run(part, now)
            return parts
        self._counts.note(batch, len(jobs))
        finished = [job for job in jobs if job.finished]
        with self._wake:
            for job in finished:
                if job.error is not None:
                    self._backlog.remove(job)
        return finished

    def _call(self, batch: Batch) -> None:
        started = perf_counter()
        sequences = [job.sequences[index] for job, index in batch.items]
        result, bounds = self._engine.forward(
            sequences,
            batch.work.want,
            self._engine.plan(batch.profile.name),
            pool_skip=[job.skip for job, _ in batch.items],
            normalize=batch.work.normalize,
            trace=batch.work.trace,
        )
        seconds = perf_counter() - started
        self._speed.record(batch.profile, batch.tokens, seconds)
        rows = self._rows(result, batch.work.want, bounds)
        kept = result["kept"][-1]
        jobs: set[int] = set()
        for place, (job, index) in enumerate(batch.items):
            # A copy, so that a small result does not keep a whole call's array alive.
            job.rows[index] = row = np.array(rows[place])
            if not np.isfinite(row).all():
                job.error = failed("the model's output is not finite")
            job.kept[index] = int(kept[place])
            if result["trace_rows"] is not None:
                job.traces[index] = np.stack([layer[place] for layer in result["trace_rows"]])
            job.done += 1
            job.macs = int(result["macs"])
            if id(job) not in jobs:
                jobs.add(id(job))
                job.inference_seconds += seconds

    def _rows(self, result: Any, want: str, bounds: Any) -> Sequence[Any]:
        """The result array of every sequence."""
        values = result[want]
        if want == "hidden":
            bounds = result["cu_kept"]
        elif want == "pooled" or not self._token_head:
            return list(values)
        return [values[a:b] for a, b in pairwise(bounds)]


class _Counts:
    """What is counted of a model's calls, its label looked up once."""

    def __init__(self, metrics: Metrics, name: str, budget: int) -> None:
        self._metrics, self._name, self._budget = metrics, name, budget
        self._fill = metrics.batch_fill.labels(name)
        self._tokens = metrics.tokens.labels(name)
        self._kept = metrics.kept.labels(name)
        self.cancelled = metrics.cancelled.labels(name)

    def note(self, batch: Batch, jobs: int) -> None:
        """Count a call that ``jobs`` requests shared."""
        metrics = self._metrics
        metrics.batch_size.observe(len(batch.items))
        metrics.batch_tokens.observe(batch.tokens)
        metrics.batch_jobs.observe(jobs)
        metrics.calls.labels(self._name, batch.profile.name or "default").inc()
        self._fill.observe(min(1.0, batch.tokens / self._budget))
        self._tokens.inc(batch.tokens)
        self._kept.inc(sum(job.kept[index] for job, index in batch.items))


def _length(item: tuple[Job, int]) -> int:
    return len(item[0].sequences[item[1]])


def _deliver(jobs: Sequence[Job]) -> None:
    """Hand finished jobs to their loops, with one wake-up per loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if not job.cancelled:
            by_loop.setdefault(job.loop, []).append(job)
    for loop, finished in by_loop.items():
        # A loop that has been closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, finished)


def _settle(jobs: list[Job]) -> None:
    for job in jobs:
        job.settle()
