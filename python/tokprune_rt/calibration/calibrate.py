"""`calibrate`: race, break-even, search, choice, verification."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.bench.cpu import cpu_model
from tokprune_rt.model import Model
from tokprune_rt.policy import DEFAULT, parse_policy, weights_digest
from tokprune_rt.tokenizer import TextOrPair, Tokens

from .families import FAMILIES, PAIR_FAMILIES, Family, Shares
from .judge import Judge, LogitJudge, Quality, VectorJudge
from .outcome import Calibration, Measured
from .passes import LENGTHS, Passes, break_even, shortest_gain
from .sample import Settings, draw
from .search import Point, search, uniform_loss
from .state import State

# Profiles beside the chosen numbers: those of the path that come closest to these MACs.
PROFILES = {"light": 0.85, "balanced": 0.7, "fast": 0.58, "fastest": 0.48}
_LEAST = 0.4
# The race of the kinds of policies: texts, and the share of the multiply-adds it is decided at.
_RACE_TEXTS, _RACE_MACS = 32, 0.75
_TIMED_TEXTS = 64
_HALVINGS = 2
# Short texts lose more; from this much more than what is asked for on they run dense.
_SHORT_LOSS = 0.01
# More of them would tell the search little that is new.
_SEARCH_TOKENS = 12_000

Tell = Callable[[str], object]


def calibrate(
    model: Model,
    texts: Iterable[TextOrPair],
    folder: Path,
    settings: Settings | None = None,
    *,
    tell: Tell = lambda line: None,
) -> Calibration:
    """Find a policy for ``model`` on texts like those it will see, without labels or training.

    Kinds of policies (merging, dropping, pooling at several places) race on a few texts; the one
    that stays closest to the dense model at equal multiply-adds is searched layer by layer. What
    is written was measured on texts the search has not seen.

    Args:
        model: an embedding model or a classifier; its own policy is not used.
        texts: raw texts, or pairs of a query and a document for a reranker, whose queries then
            stay whole; `Settings.sample` of them are drawn.
        folder: where `Calibration.save` will write; measurements are kept there, so that the same
            call goes on where an interrupted one stopped.
        tell: given a line for every stage.

    Raises:
        ValueError: fewer than 30 texts, texts mixed with pairs, a model without embeddings and
            classes, a folder with measurements of another model, texts or machine, or a target
            that no policy reaches; says how close it came.
    """
    settings = settings or Settings()
    if model.dimension is None and model.config.task != "sequence-classification":
        raise ValueError(
            f"{model.name} is a {model.config.task} model without embeddings; calibration compares "
            "embeddings or classes"
        )
    drawn = draw(texts, settings.sample, settings.seed)
    kinds = {isinstance(item, tuple) for item in drawn}
    if len(kinds) > 1:
        raise ValueError("texts: found texts and pairs; expected one or the other")
    tokens = model.tokenizer.tokenize(drawn)
    folder.mkdir(parents=True, exist_ok=True)
    return _Run(model, tokens, folder, settings, tell, pairs=kinds == {True}).result()


class _Run:
    """One calibration."""

    def __init__(
        self,
        model: Model,
        tokens: Sequence[Tokens],
        folder: Path,
        settings: Settings,
        tell: Tell,
        *,
        pairs: bool,
    ) -> None:
        self.model, self.settings, self.tell = model, settings, tell
        self.families = PAIR_FAMILIES if pairs else FAMILIES
        self.begin = time.monotonic()
        third = max(10, len(tokens) // 3)
        self.seen = Passes(model, _within(tokens[:third], _SEARCH_TOKENS))
        self.held_out = Passes(model, tokens[third:])
        self.weights = weights_digest(model.setup.encoder_folder)
        job = {
            "model": model.name,
            "weights": self.weights,
            "precision": model.precision,
            "threads": model.threads,
            "isa": model.isa,
            "cpu": cpu_model(),
            "drawn texts": _digest(*(item.ids for item in tokens)),
            # Shards, a Dense layer and pooling are not in the digest of the weights.
            "dense outputs": _digest(self.seen.run(None)[0]),
        }
        self.state = State(folder, job)
        if self.state.found:
            tell(f"{self.state.found} measurements of an earlier run are used again")
        # Never below one token; only what a kind of policy may touch.
        self.options: dict[str, Any] = {"protect_first": True, "protect_last": True}
        if pairs:
            self.options["protect_segment"] = 0
        self.timed = Passes(model, self.held_out.tokens[:_TIMED_TEXTS])
        self.qualities: dict[Shares, tuple[Quality, float]] = {}
        self.speedups: dict[Shares, float] = {}
        self.latencies: dict[Shares, float] = {}

    def result(self) -> Calibration:
        race = self.race()
        name = min(race, key=lambda kind: race[kind])
        self.family = family = self.families[name]
        self.tell(f"best kind: {family.label}")
        if not self.state.speeds:
            self.tell("looking for the shortest texts that gain")
            usual = family.document((0.15,) * self.layers, None, self.options)
            self.state.put_speeds(break_even(self.seen, usual))
        speeds = self.state.speeds
        self.options["skip_below"] = shortest_gain(speeds)
        path = self.path(name, family)
        self.judge, self.dense_macs = self.judged(self.held_out)
        chosen = self.choose(path)
        qualities = self.by_length(chosen)
        if self.options["skip_below"] < (least := self.shortest_good(qualities)):
            self.tell(f"texts below {least} tokens run dense")
            self.options["skip_below"] = least
            self.forget()
            chosen = self.choose(path)
        rows = [self.row(DEFAULT, chosen)]
        profiles: dict[str, Shares] = {}
        for profile, macs in PROFILES.items():
            point = min(path, key=lambda p: abs(p.macs - macs))
            # Too far to deserve the name, or one that is there already.
            if abs(point.macs - macs) > 0.06 or point.shares in profiles.values():
                continue
            profiles[profile] = point.shares
            rows.append(self.row(profile, point))
        facts = self.facts()
        provenance = {**facts, "rows": [row.to_dict() for row in rows]}
        options = {**self.options, "name": "calibrated", "provenance": provenance}
        policy = parse_policy(family.document(chosen.shares, profiles, options))
        return Calibration(policy, rows, family.label, race, speeds, qualities, facts, self.note())

    @property
    def layers(self) -> int:
        return self.model.config.layers

    def judged(self, passes: Passes) -> tuple[Judge, int]:
        """A judge by the dense outputs, and the dense multiply-adds."""
        dense, macs = passes.run(None)
        return VectorJudge(dense) if self.model.dimension else LogitJudge(dense), macs

    def in_time(self) -> bool:
        budget = self.settings.budget
        return budget is None or time.monotonic() - self.begin < 60 * budget

    def note(self) -> str | None:
        if self.in_time():
            return None
        return f"The search was ended by its budget of {self.settings.budget:g} minutes."

    def evaluator(self, name: str, family: Family, passes: Passes) -> Callable[[Shares], Point]:
        judge, dense_macs = self.judged(passes)

        def evaluate(shares: Shares) -> Point:
            known = self.state.get(name, shares)
            if known is not None:
                return known
            plan = passes.plan(family.document(shares, None, self.options))
            found, macs = passes.run(plan)
            point = Point(shares, macs / dense_macs, judge.loss(found))
            self.state.put(name, point)
            return point

        return evaluate

    def race(self) -> dict[str, float]:
        few = Passes(self.model, self.seen.tokens[:_RACE_TEXTS])
        losses = {}
        for name, family in self.families.items():
            self.tell(f"trying {family.label}")
            evaluate = self.evaluator(f"race {name}", family, few)
            losses[name] = uniform_loss(evaluate, self.layers, _RACE_MACS)
        return losses

    def path(self, name: str, family: Family) -> list[Point]:
        evaluate = self.evaluator(name, family, self.seen)
        least, worst = self.bounds()

        def enough(point: Point) -> bool:
            if point.macs < 1:
                self.tell(f"{point.macs:.0%} of the multiply-adds, loss {point.loss:.4f}")
            return point.macs < least or (point.loss > worst and point.macs < PROFILES["fast"])

        try:
            return search(evaluate, self.layers, enough, self.in_time)
        finally:
            self.state.write()

    def bounds(self) -> tuple[float, float]:
        """Multiply-adds and loss at which the search ends."""
        settings = self.settings
        if settings.target_speedup is not None:
            # Time never falls as far as multiply-adds do.
            return max(0.15, 0.7 / settings.target_speedup), math.inf
        if settings.latency_ms is not None:
            return _LEAST, math.inf
        return _LEAST, (3 * (1 - self.wanted_quality) if self.model.dimension else math.inf)

    @property
    def wanted_quality(self) -> float:
        return 0.98 if self.settings.min_quality is None else self.settings.min_quality

    def choose(self, path: list[Point]) -> Point:
        """The point that the settings ask for, found by halving the path."""
        settings, end = self.settings, path[-1]
        reached = f"with {end.macs:.0%} of the multiply-adds"
        if settings.target_speedup is not None:
            wanted = settings.target_speedup
            found = _first(path, lambda point: self.speedup(point) >= wanted)
            if found is None:
                raise ValueError(
                    f"a speed-up of {wanted:g} was not reached: {reached} these texts run "
                    f"{self.speedup(end):.2f} times as fast, at {self.told(end)}"
                )
            return found
        if settings.latency_ms is not None:
            limit = settings.latency_ms
            found = _first(path, lambda point: self.latency(point) <= limit)
            if found is None:
                raise ValueError(
                    f"{limit:g} ms a text were not reached: {reached} a text takes "
                    f"{self.latency(end):.2f} ms, at {self.told(end)}"
                )
            return found
        wanted = self.wanted_quality
        worse = _first(path, lambda point: self.quality(point).value < wanted)
        place = len(path) if worse is None else path.index(worse)
        if place < 2:
            mildest = path[min(1, len(path) - 1)]
            raise ValueError(
                f"no policy keeps a {self.judge.name} of {wanted:g} on these texts; the mildest "
                f"that was tried has {self.told(mildest)}"
            )
        return path[place - 1] if worse is None else self.between(path[place - 1], worse)

    def between(self, good: Point, bad: Point) -> Point:
        """The last point that is good enough on the way from one to the next of a path."""
        for _ in range(_HALVINGS):
            shares = tuple((a + b) / 2 for a, b in zip(good.shares, bad.shares, strict=True))
            middle = Point(shares, (good.macs + bad.macs) / 2, (good.loss + bad.loss) / 2)
            if self.quality(middle).value >= self.wanted_quality:
                good = middle
            else:
                bad = middle
        return good

    def by_length(self, point: Point) -> dict[int, float]:
        """Length in tokens -> quality of a point on texts cut to it."""
        found = {}
        for length in LENGTHS:
            cut = self.seen.cut(length)
            if cut is not None:
                outputs, _ = cut.run(cut.plan(self.document(point)))
                found[length] = self.judged(cut)[0].quality(outputs).value
        return found

    def shortest_good(self, qualities: Mapping[int, float]) -> int:
        """The length from which on quality is close to what is asked for, at most a usual one."""
        if self.settings.target_speedup or self.settings.latency_ms:
            return 0
        usual = float(np.median([len(item) for item in self.seen.tokens]))
        bad = [n for n, value in qualities.items() if value < self.wanted_quality - _SHORT_LOSS]
        good = [n for n in qualities if n > max(bad, default=0) and n <= usual]
        return min(good) if bad and good else 0

    def forget(self) -> None:
        """Measurements on held-out texts, when they no longer are of the policy's limits."""
        for found in (self.qualities, self.speedups, self.latencies):
            found.clear()

    def told(self, point: Point) -> str:
        return f"a {self.judge.name} of {self.quality(point).value:.4f}"

    def document(self, point: Point) -> dict[str, Any]:
        return self.family.document(point.shares, None, self.options)

    def quality(self, point: Point) -> Quality:
        """Of a point on the held-out texts."""
        if point.shares not in self.qualities:
            found, macs = self.held_out.run(self.held_out.plan(self.document(point)))
            quality = self.judge.quality(found)
            self.qualities[point.shares] = (quality, macs / self.dense_macs)
            self.tell(
                f"held out: {macs / self.dense_macs:.0%} of the multiply-adds, "
                f"{self.judge.name} {quality.value:.4f}"
            )
        return self.qualities[point.shares][0]

    def speedup(self, point: Point) -> float:
        """Of a point against dense, on held-out texts."""
        if point.shares not in self.speedups:
            dense, pruned = self.timed.time([None, self.document(point)])
            self.speedups[point.shares] = pruned.times_faster_than(dense)
        return self.speedups[point.shares]

    def latency(self, point: Point) -> float:
        """Milliseconds for a held-out text in a call of its own."""
        if point.shares not in self.latencies:
            (found,) = self.timed.time([self.document(point)], one_by_one=True)
            self.latencies[point.shares] = found.median_ms / len(self.timed.tokens)
        return self.latencies[point.shares]

    def row(self, name: str, point: Point) -> Measured:
        self.tell(f"timing {name}")
        quality = self.quality(point)
        macs = self.qualities[point.shares][1]
        ms = None if self.settings.latency_ms is None else self.latency(point)
        return Measured(name, point.shares, macs, self.speedup(point), quality, ms)

    def facts(self) -> dict[str, Any]:
        asked = dataclasses.asdict(self.settings)
        return {
            "base_model": self.model.name,
            "weights_sha256": self.weights,
            "precision": self.model.precision,
            "threads": self.model.threads,
            "isa": self.model.isa,
            "cpu": cpu_model(),
            "searched": len(self.seen.tokens),
            "held_out": len(self.held_out.tokens),
            "held_out_tokens": int(np.sum([len(item) for item in self.held_out.tokens])),
            "settings": {name: value for name, value in asked.items() if value is not None},
            "seconds": round(time.monotonic() - self.begin),
        }


def _digest(*arrays: NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def _within(tokens: Sequence[Tokens], limit: int) -> list[Tokens]:
    """The first texts that hold so many tokens together, ten at least."""
    total = np.cumsum([len(item) for item in tokens])
    return list(tokens[: max(10, int((total <= limit).sum()))])


def _first(path: Sequence[Point], holds: Callable[[Point], bool]) -> Point | None:
    """The first point from which on ``holds``, by halving; None when it does not at the end."""
    low, high = 0, len(path)
    while low < high:
        middle = (low + high) // 2
        if holds(path[middle]):
            high = middle
        else:
            low = middle + 1
    return path[low] if low < len(path) else None
