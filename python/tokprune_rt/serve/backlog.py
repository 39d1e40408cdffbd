"""Which sequences go into the next call of the encoder.

Jobs are served by a virtual deadline that is fixed on arrival: ``arrival + work``, where work is
the time that the job's own tokens take the encoder, or ``deadline - work`` when that is earlier
and can be kept. A short job therefore overtakes a long one that came a little before it, but a long
job lets others pass for no longer than its own work takes: from then on every newcomer ranks behind
it, and it cannot starve. A long job's sequences go into as many calls as they need, newcomers in
between.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from tokprune_rt.serve.jobs import Job, Profile, Work


@dataclass(frozen=True, slots=True)
class Batch:
    """One call: its work, its profile, and (job, index of the sequence) in order."""

    work: Work
    profile: Profile
    items: list[tuple[Job, int]]
    tokens: int


def rank_of(arrival: float, deadline: float, work: float) -> float:
    """The virtual deadline of a job whose own tokens take ``work`` seconds.

    A job that cannot keep its deadline in any case gains nothing by it.
    """
    latest = deadline - work
    return min(arrival + work, latest) if latest >= arrival else arrival + work


class Backlog:
    """Jobs that wait, in the order in which they are served. Not safe between threads."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._jobs: list[Job] = []
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def ahead(self, rank: float) -> int:
        """Tokens that are served before a job of this rank."""
        total = 0
        for job in self._jobs:
            if job.rank > rank:
                break
            total += job.waiting
        return total

    def add(self, job: Job) -> None:
        """Queue a job by its rank, behind those of the same rank."""
        bisect.insort_right(self._jobs, job, key=lambda other: other.rank)
        self.tokens += job.waiting

    def remove(self, job: Job) -> bool:
        """Drop what is left of a job; False when nothing of it waits."""
        for place, other in enumerate(self._jobs):
            if other is job:
                del self._jobs[place]
                self.tokens -= job.waiting
                return True
        return False

    def expired(self, now: float) -> list[Job]:
        """Remove and return the jobs whose deadline has passed."""
        late = [job for job in self._jobs if job.deadline <= now]
        for job in late:
            self.remove(job)
        return late

    def take(self, choose: Callable[[], Profile]) -> Batch | None:
        """The next call's sequences, at most ``budget`` tokens unless the first is longer.

        The first job in order decides the call's work and profile; others of the same kind fill
        what room is left. ``choose`` gives the profile of jobs that leave it to the server: once
        per call, and a job keeps the one it began with.
        """
        if not self._jobs:
            return None
        chosen: Profile | None = None

        def profile_of(job: Job) -> Profile:
            nonlocal chosen
            if job.profile is not None:
                return job.profile
            if chosen is None:
                chosen = choose()
            return chosen

        first = self._jobs[0]
        work, profile = first.work, profile_of(first)
        items: list[tuple[Job, int]] = []
        total = 0
        left: list[Job] = []
        for place, job in enumerate(self._jobs):
            if total >= self._budget or (work.alone and job is not first):
                left += self._jobs[place:]
                break
            if job.work == work and profile_of(job) == profile:
                while job.next < len(job.sequences):
                    length = len(job.sequences[job.next])
                    if items and total + length > self._budget and not work.alone:
                        break
                    job.profile = profile
                    items.append((job, job.next))
                    job.next += 1
                    job.waiting -= length
                    total += length
            if job.next < len(job.sequences):
                left.append(job)
        self._jobs = left
        self.tokens -= total
        return Batch(work, profile, items, total)
