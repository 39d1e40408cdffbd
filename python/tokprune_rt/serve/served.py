"""A model behind the server: its tokenizer off the event loop, its encoder in a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tokprune_rt.policy import DEFAULT, OFF
from tokprune_rt.serve.errors import invalid, too_large
from tokprune_rt.serve.jobs import Job, Profile, Want, Work
from tokprune_rt.serve.metrics import Metrics
from tokprune_rt.serve.settings import Settings
from tokprune_rt.serve.speed import Adaptive, Speed
from tokprune_rt.serve.worker import Worker
from tokprune_rt.tokenizer import InputTooLongError, Tokens

if TYPE_CHECKING:
    from tokprune_rt.model import Model

T = TypeVar("T")

_PROBE_TOKENS = 128
# Characters of a request that may keep a tokenizer busy for longer than a call of the encoder.
_LONG = 50_000
# Characters that are tokenized sooner than a thread is woken to do it.
_BRIEF = 400


def profile_name(profile: Profile) -> str:
    """What clients and metrics call a profile."""
    return DEFAULT if profile.name is None else profile.name


class Pools:
    """Threads for tokenization. Long texts have their own, so that short ones do not wait."""

    def __init__(self, models: int) -> None:
        self.short = ThreadPoolExecutor(max(2, models), thread_name_prefix="tokenizer")
        self.long = ThreadPoolExecutor(1, thread_name_prefix="long texts")

    def close(self) -> None:
        """End the threads once they are idle."""
        self.short.shutdown(wait=False)
        self.long.shutdown(wait=False)


@dataclass(slots=True)
class Call:
    """What one HTTP request cost, for its headers, the metrics and the log."""

    arrival: float
    deadline: float
    model: str = ""
    policy: str = ""
    profile: str = ""
    items: int = 0
    characters: int = 0
    tokens: int = 0
    kept: int = 0
    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0


class Served:
    """A model with its worker.

    Raises ValueError when the settings name a profile that the model does not have.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        settings: Settings,
        metrics: Metrics,
        pools: Pools,
    ) -> None:
        self.name = name
        self.model = model
        self.settings = settings
        # A hash of all the policy's tensors: not for the first request to wait for.
        self.policy = model.policy_hash
        self._pools = pools
        self._speed = Speed()
        self._start = self._known(settings.profile)
        known = [self._start, *(self._known(name) for name in self.profiles)]
        self._costs = {profile: self._measure(profile, 2) for profile in dict.fromkeys(known)}
        objective = None if settings.slo_ms is None else settings.slo_ms / 1000
        self.adaptive = Adaptive(self._levels(), objective, self._speed)
        self.worker = Worker(
            model.engine,
            name=name,
            budget=settings.max_batch_tokens,
            patience=settings.max_queue_ms / 1000,
            speed=self._speed,
            adaptive=self.adaptive,
            metrics=metrics,
            token_head=model.config.head == "token",
        )
        self.worker.start()

    @property
    def profiles(self) -> list[str]:
        """Names for ``profile`` of a request."""
        return [OFF] if self.model.policy is None else [DEFAULT, *self.model.profiles]

    def _known(self, name: str | None) -> Profile:
        """The profile of this name; ValueError lists the names for an unknown one."""
        if self.model.policy is None and name in (None, DEFAULT):
            return Profile(OFF)
        if name in (None, DEFAULT):
            return Profile(None)
        if name not in self.model.profiles:
            raise ValueError(
                f"unknown profile {name!r}; {self.name} has: {', '.join(self.profiles)}"
            )
        return Profile(name)

    def requested(self, name: str | None) -> Profile | None:
        """The profile that a request names; None leaves it to the server. Errors: 422."""
        if name is None:
            return None
        try:
            return self._known(name)
        except ValueError as error:
            raise invalid(str(error), "profile") from error

    def warm_up(self) -> None:
        """Run every profile at full load once more, so that the first requests find it measured."""
        for profile in self._costs:
            self._measure(profile, max(2, self.settings.max_batch_tokens // _PROBE_TOKENS))

    def _measure(self, profile: Profile, texts: int) -> int:
        """Run texts of chance under a profile; returns their multiply-adds."""
        model = self.model
        length = max(1, min(_PROBE_TOKENS, model.max_seq_length))
        ids = np.random.default_rng(0).integers(
            0, model.config.vocab_size, size=(texts, length), dtype=np.int32
        )
        zeros = np.zeros(length, dtype=np.int32)
        want: Want = "hidden" if model.dimension is None else "pooled"
        if model.config.head != "none":
            want = "logits"
        plan = model.engine.plan(profile.name)
        started = perf_counter()
        result, _ = model.engine.forward([Tokens(row, zeros, zeros) for row in ids], want, plan)
        self._speed.record(profile, texts * length, perf_counter() - started)
        return int(result["macs"])

    def _levels(self) -> list[Profile]:
        """Profiles from the one without load down to the floor, dearest first."""
        costs, floor = self._costs, self.settings.min_profile
        start = costs[self._start]
        least = 0 if floor is None else costs[self._known(floor)]
        if least > start:
            raise ValueError(
                f"min_profile {floor!r} of {self.name} does more work than "
                f"{profile_name(self._start)!r}, from which it is reached"
            )
        cheaper = [p for p, cost in costs.items() if least <= cost < start]
        return [self._start, *sorted(cheaper, key=lambda profile: -costs[profile])]

    async def off_loop(self, function: Callable[[], T], characters: int = 0) -> T:
        """Run blocking work beside the event loop, much text apart from little."""
        pool = self._pools.long if characters > _LONG else self._pools.short
        return await asyncio.get_running_loop().run_in_executor(pool, function)

    async def tokenized(self, call: Call, function: Callable[[], T]) -> T:
        """Run tokenization, of more than a few words beside the event loop; its ValueError is the
        client's: 413 or 422."""
        started = perf_counter()
        try:
            if call.characters <= _BRIEF:
                return function()
            return await self.off_loop(function, call.characters)
        except InputTooLongError as error:
            raise too_large(str(error), "input") from error
        except ValueError as error:
            raise invalid(str(error), "input") from error
        finally:
            call.tokenization += perf_counter() - started

    async def run(
        self,
        call: Call,
        sequences: Sequence[Tokens],
        work: Work,
        profile: Profile | None,
        skip: int = 0,
        *,
        admitted: bool = False,
    ) -> Job:
        """Encode sequences; returns the finished job, which is not refused when ``admitted``.

        A cancelled caller drops the job. Raises ServeError: 413, 424, 429, 503 or 504.
        """
        tokens = sum(len(item) for item in sequences)
        call.model, call.policy = self.name, self.policy
        call.items += len(sequences)
        call.tokens += tokens
        if tokens > self.settings.max_tokens:
            raise too_large(
                f"the request has {tokens} tokens, the limit is {self.settings.max_tokens}"
            )
        loop = asyncio.get_running_loop()
        job = Job(
            sequences=sequences,
            work=work,
            profile=profile,
            skip=skip,
            arrival=monotonic(),
            deadline=call.deadline,
            loop=loop,
            future=loop.create_future(),
            admitted=admitted,
        )
        if not sequences:
            return job
        self.worker.submit(job)
        try:
            await job.future
        except asyncio.CancelledError:
            self.worker.cancel(job)
            raise
        assert job.profile is not None
        call.profile = profile_name(job.profile)
        call.kept += sum(job.kept)
        call.queue += job.queue_seconds
        call.inference += job.inference_seconds
        return job
