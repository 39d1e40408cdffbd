"""How fast the encoder is, and which profile the load calls for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from tokprune_rt.serve.jobs import Profile

# Weight of what was measured before, per call: some twenty calls are remembered.
_MEMORY = 0.95
# A dearer profile comes back when the queue would take it at most this share of the objective...
_RETURN = 0.5
# ...and the last change is this long ago.
HOLD_SECONDS = 1.0


class Speed:
    """Tokens per second under each profile: a moving ratio, so that small calls weigh little."""

    def __init__(self) -> None:
        self._sums: dict[Profile, tuple[float, float]] = {}

    def record(self, profile: Profile, tokens: int, seconds: float) -> None:
        """Count a call."""
        old_tokens, old_seconds = self._sums.get(profile, (0.0, 0.0))
        self._sums[profile] = (
            _MEMORY * old_tokens + tokens,
            _MEMORY * old_seconds + max(seconds, 1e-9),
        )

    def rate(self, profile: Profile) -> float:
        """Tokens per second; of the slowest profile known for one that has never run."""
        if profile in self._sums:
            tokens, seconds = self._sums[profile]
            return tokens / seconds
        return min((t / s for t, s in self._sums.values()), default=10_000.0)


class Adaptive:
    """Chooses among profiles, dearest first, so that the queue is worked off within an objective.

    When the waiting tokens would take longer than the objective, it moves at once to the dearest
    profile that keeps it, or to the last one. Back it goes a step at a time, and only when the
    queue has been short for a while, so that it does not swing. With one profile there is no
    choice.
    """

    def __init__(
        self,
        levels: Sequence[Profile],
        objective: float | None,
        speed: Speed,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        if not levels:
            raise ValueError("Adaptive needs at least one profile")
        self.levels = list(levels)
        self.level = 0
        self._objective = objective
        self._speed = speed
        self._clock = clock
        self._changed = -float("inf")

    @property
    def current(self) -> Profile:
        """The profile in use."""
        return self.levels[self.level]

    @property
    def cheapest(self) -> Profile:
        """What is run when it comes to the worst."""
        return self.levels[-1] if self._objective is not None else self.levels[0]

    def choose(self, tokens: int) -> Profile:
        """The profile for the next call, with this many tokens waiting."""
        if self._objective is None or len(self.levels) == 1:
            return self.current
        now = self._clock()
        if self._seconds(tokens, self.level) > self._objective:
            self._move(self._keeping(tokens), now)
        elif (
            self.level > 0
            and now - self._changed >= HOLD_SECONDS
            and self._seconds(tokens, self.level - 1) <= _RETURN * self._objective
        ):
            self._move(self.level - 1, now)
        return self.current

    def _keeping(self, tokens: int) -> int:
        for level in range(self.level, len(self.levels)):
            if self._seconds(tokens, level) <= (self._objective or 0.0):
                return level
        return len(self.levels) - 1

    def _move(self, level: int, now: float) -> None:
        # Staying at the last level under load also puts off the way back.
        self.level, self._changed = level, now

    def _seconds(self, tokens: int, level: int) -> float:
        return tokens / self._speed.rate(self.levels[level])
