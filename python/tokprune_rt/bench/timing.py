"""Alternating measurement: every candidate gets its turn in every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Thread pools of other engines go on spinning for a while after a call, up to 0.2 s.
_SETTLE_S = 0.3
_PROBE_S = 0.004
# Calls per turn: short ones are repeated for about this long.
_TURN_S = 0.04
_MAX_CALLS = 10
# Slower ones are not worth an untimed call at the start of every turn.
_WARM_BELOW_S = 0.3
_WANTED_ROUNDS, _MIN_ROUNDS = 3, 2
# How far over its limit a workload may go for the sake of the wanted rounds.
_PATIENCE = 4.0


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one candidate, one tuple for each round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def calls(self) -> int:
        return sum(len(turn) for turn in self.rounds)

    def _all(self) -> list[float]:
        return [seconds for turn in self.rounds for seconds in turn]

    @property
    def median_ms(self) -> float:
        return float(np.median(self._all())) * 1e3

    @property
    def p99_ms(self) -> float:
        return float(np.percentile(self._all(), 99)) * 1e3

    @property
    def best_ms(self) -> float:
        return min(self._all()) * 1e3

    def times_faster_than(self, other: Timing) -> float:
        """Median over the rounds of the other's time to this one's, both of the same round."""
        ratios = [
            float(np.median(theirs)) / float(np.median(own))
            for own, theirs in zip(self.rounds, other.rounds, strict=True)
        ]
        return float(np.median(ratios))


def settle() -> None:
    """Wait until no thread of this process is busy."""
    deadline = time.perf_counter() + _SETTLE_S
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(_PROBE_S)
        if time.process_time() - before < _PROBE_S / 8:
            return


def alternate(
    calls: Sequence[Callable[[], object]],
    rounds: int,
    limit_s: float,
    tick: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """Time ``calls`` in turns.

    Every one must have run before, so that what it does only once is done. The order is reversed
    in every other round.

    Args:
        calls: functions without arguments.
        rounds: turns of each, at most.
        limit_s: no round begins after this many seconds, but three are made, or two where they
            take very long.
        tick: called after every turn.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    took: list[list[tuple[float, ...]]] = [[] for _ in calls]
    estimates: list[float | None] = [None] * len(calls)
    begin = time.perf_counter()
    for number in range(rounds):
        spent = time.perf_counter() - begin
        least = _WANTED_ROUNDS if spent < _PATIENCE * limit_s else _MIN_ROUNDS
        if number >= least and spent > limit_s:
            break
        order = range(len(calls)) if number % 2 == 0 else range(len(calls) - 1, -1, -1)
        for i in order:
            settle()
            turn = _turn(calls[i], estimates[i])
            estimates[i] = min(turn)
            took[i].append(turn)
            tick()
    return [Timing(tuple(turns)) for turns in took]


def _turn(call: Callable[[], object], estimate: float | None) -> tuple[float, ...]:
    if estimate is None or estimate < _WARM_BELOW_S:
        estimate = _timed(call)
        if estimate >= _WARM_BELOW_S:
            return (estimate,)
    repeat = min(_MAX_CALLS, max(1, round(_TURN_S / estimate)))
    return tuple(_timed(call) for _ in range(repeat))


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
