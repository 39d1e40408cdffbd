"""One request's work for the encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokprune_rt.tokenizer import Tokens

Want = Literal["hidden", "pooled", "logits"]


@dataclass(frozen=True, slots=True)
class Work:
    """What the encoder is asked for. Only equal work can share a call.

    Attributes:
        want: which result.
        normalize: scale pooled vectors to length 1.
        trace: also say which tokens stayed.
        alone: share no call with other requests, so that its time is its own.
    """

    want: Want
    normalize: bool = False
    trace: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile to run under; ``name`` None stands for the policy's own numbers."""

    name: str | None


@dataclass(eq=False, slots=True)
class Job:
    """Sequences to encode, and what has become of them.

    Attributes:
        sequences: the token arrays.
        work: what is asked for.
        profile: the profile; None lets the server choose when the first sequence is run.
        skip: leading tokens that pooling leaves out.
        admitted: more work of a request that was taken before, so not to be refused.
        arrival, deadline: on the clock of `time.monotonic`.
        loop, future: where the result goes; set from the loop's own thread.
        rank: place in the queue; see `Backlog`.
        next: index of the first sequence that is not in a call yet.
        tokens, waiting: tokens of all sequences, and of those from ``next`` on.
        rows: a result array per sequence.
        kept: tokens left after the last layer, per sequence.
        traces: with ``work.trace``, `Trace.rows` of each sequence, int32 [layers, tokens].
        queue_seconds: until the first sequence was run.
        inference_seconds: of the calls that this job took part in.
        macs: multiply-adds of a job that ran alone.
    """

    sequences: Sequence[Tokens]
    work: Work
    profile: Profile | None
    skip: int
    arrival: float
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Job]
    admitted: bool = False
    rank: float = 0.0
    next: int = 0
    done: int = 0
    cancelled: bool = False
    error: Exception | None = None
    rows: list[NDArray[np.float32] | None] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    traces: list[NDArray[np.int32]] = field(default_factory=list)
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0
    macs: int = 0
    tokens: int = 0
    waiting: int = 0

    def __post_init__(self) -> None:
        self.tokens = self.waiting = sum(len(item) for item in self.sequences)
        self.rows = [None] * len(self.sequences)
        self.kept = [0] * len(self.sequences)
        if self.work.trace:
            self.traces = [np.zeros((0, 0), np.int32)] * len(self.sequences)

    @property
    def finished(self) -> bool:
        """Whether every sequence is done, or none will be any more."""
        return self.error is not None or self.done == len(self.sequences)

    def settle(self) -> None:
        """Hand the result, or the error, to whoever waits; on the loop's thread."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self)
