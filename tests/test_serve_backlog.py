"""The order in which work is done, and the choice of profile, without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tokprune_rt.serve.backlog import Backlog, rank_of
from tokprune_rt.serve.jobs import Job, Profile, Work
from tokprune_rt.serve.speed import HOLD_SECONDS, Adaptive, Speed
from tokprune_rt.tokenizer import Tokens

POOLED = Work("pooled", normalize=True)
OWN, FAST = Profile(None), Profile("fast")


def job(*lengths: int, rank: float = 0.0, work: Work = POOLED, **changes: Any) -> Job:
    arrays = [np.zeros(n, dtype=np.int32) for n in lengths]
    loop = asyncio.new_event_loop()
    future: asyncio.Future[Job] = loop.create_future()
    loop.close()
    made = Job(
        sequences=[Tokens(a, a, a) for a in arrays],
        work=work,
        profile=changes.pop("profile", None),
        skip=0,
        arrival=0.0,
        deadline=changes.pop("deadline", float("inf")),
        loop=loop,
        future=future,
    )
    made.rank = rank
    return made


def taken(backlog: Backlog, profile: Profile = OWN) -> list[tuple[Job, int]]:
    batch = backlog.take(lambda: profile)
    assert batch is not None
    assert batch.tokens == sum(len(job.sequences[index]) for job, index in batch.items)
    return batch.items


def test_requests_are_merged_up_to_the_budget() -> None:
    backlog = Backlog(100)
    jobs = [job(40, rank=i) for i in range(4)]
    for item in jobs:
        backlog.add(item)
    assert taken(backlog) == [(jobs[0], 0), (jobs[1], 0)]
    assert taken(backlog) == [(jobs[2], 0), (jobs[3], 0)]
    assert backlog.take(lambda: OWN) is None and backlog.tokens == 0


def test_a_long_job_is_cut_into_calls_with_newcomers_between() -> None:
    backlog = Backlog(100)
    long = job(*[60] * 3, rank=10)
    backlog.add(long)
    assert taken(backlog) == [(long, 0)]
    short = job(10, rank=5)
    backlog.add(short)
    assert taken(backlog) == [(short, 0), (long, 1)]
    assert taken(backlog) == [(long, 2)]


def test_a_sequence_beyond_the_budget_goes_alone() -> None:
    backlog = Backlog(100)
    huge, small = job(500, rank=0), job(1, rank=1)
    backlog.add(huge)
    backlog.add(small)
    assert taken(backlog) == [(huge, 0)]
    assert taken(backlog) == [(small, 0)]


def test_what_does_not_fit_lets_smaller_work_in() -> None:
    backlog = Backlog(100)
    first, second, third = job(70, rank=0), job(50, rank=1), job(30, rank=2)
    for item in (first, second, third):
        backlog.add(item)
    assert taken(backlog) == [(first, 0), (third, 0)]
    assert taken(backlog) == [(second, 0)]


def test_only_equal_work_shares_a_call() -> None:
    backlog = Backlog(100)
    a, b = job(10, rank=0), job(10, rank=1, work=Work("pooled"))
    c, d = job(10, rank=2, profile=FAST), job(10, rank=3)
    for item in (a, b, c, d):
        backlog.add(item)
    assert taken(backlog) == [(a, 0), (d, 0)]
    assert taken(backlog) == [(b, 0)]
    assert taken(backlog) == [(c, 0)]


def test_a_job_keeps_the_profile_it_began_with() -> None:
    backlog = Backlog(50)
    long = job(40, 40, rank=0)
    backlog.add(long)
    taken(backlog, FAST)
    other = job(5, rank=1)
    backlog.add(other)
    assert taken(backlog, OWN) == [(long, 1)]
    assert long.profile == FAST
    assert taken(backlog, OWN) == [(other, 0)]
    assert other.profile == OWN


def test_alone_means_alone() -> None:
    backlog = Backlog(100)
    measured = Work("pooled", normalize=True, alone=True)
    a, b = job(60, 60, rank=0, work=measured), job(10, rank=1, work=measured)
    backlog.add(a)
    backlog.add(b)
    assert taken(backlog) == [(a, 0), (a, 1)]
    assert taken(backlog) == [(b, 0)]


def test_removed_and_expired_jobs_are_not_run() -> None:
    backlog = Backlog(100)
    late, gone, good = job(10, deadline=5.0), job(20), job(30)
    for item in (late, gone, good):
        backlog.add(item)
    assert backlog.remove(gone) and not backlog.remove(gone)
    assert backlog.expired(4.9) == [] and backlog.expired(5.0) == [late]
    assert backlog.tokens == 30 and len(backlog) == 1
    assert taken(backlog) == [(good, 0)]


def test_ahead_counts_what_is_served_first() -> None:
    backlog = Backlog(100)
    for rank in (3.0, 1.0, 2.0):
        backlog.add(job(int(10 * rank), rank=rank))
    assert [backlog.ahead(rank) for rank in (0.5, 1.0, 2.5, 9.0)] == [0, 10, 30, 60]


def test_rank() -> None:
    # By the job's own work...
    assert rank_of(10.0, 40.0, 2.0) == 12.0
    # ...or by its deadline, when that is close...
    assert rank_of(10.0, 13.0, 2.0) == 11.0
    # ...but not by one that it cannot keep.
    assert rank_of(10.0, 11.0, 2.0) == 12.0
    assert rank_of(10.0, float("inf"), 2.0) == 12.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def adaptive(clock: Clock, objective: float | None = 0.1) -> Adaptive:
    speed = Speed()
    for name, rate in (("a", 1000), ("b", 2000), ("c", 4000)):
        speed.record(Profile(name), rate, 1.0)
    return Adaptive([Profile(name) for name in "abc"], objective, speed, clock)


def test_the_dearest_profile_that_keeps_the_objective(clock: Clock) -> None:
    chosen = adaptive(clock)
    assert chosen.choose(100) == Profile("a")
    assert chosen.choose(101) == Profile("b")
    assert chosen.choose(300) == Profile("c")
    assert chosen.choose(100_000) == Profile("c")


def test_it_comes_back_step_by_step_and_not_at_once(clock: Clock) -> None:
    chosen = adaptive(clock)
    assert chosen.choose(10_000) == Profile("c")
    assert chosen.choose(0) == Profile("c")
    clock.now += HOLD_SECONDS
    # Half of the objective under the dearer profile is the limit for the way back.
    assert chosen.choose(101) == Profile("c")
    assert chosen.choose(100) == Profile("b")
    assert chosen.choose(0) == Profile("b")
    clock.now += HOLD_SECONDS
    assert chosen.choose(50) == Profile("a")


def test_without_an_objective_nothing_moves(clock: Clock) -> None:
    chosen = adaptive(clock, None)
    assert chosen.choose(10**9) == Profile("a") == chosen.cheapest


def test_speed_weighs_calls_by_their_tokens() -> None:
    speed = Speed()
    assert speed.rate(OWN) == 10_000
    speed.record(OWN, 1000, 0.1)
    speed.record(OWN, 1, 0.001)
    assert speed.rate(OWN) == pytest.approx((950 + 1) / (0.095 + 0.001))
    assert speed.rate(FAST) == speed.rate(OWN)
    for _ in range(200):
        speed.record(OWN, 500, 0.1)
    assert speed.rate(OWN) == pytest.approx(5000, rel=0.01)
