"""Passes of one model over fixed texts, dense and under policies, and their times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokprune_rt import _core
from tokprune_rt.bench.timing import Timing, alternate
from tokprune_rt.engine import batches
from tokprune_rt.loading import choose_policy
from tokprune_rt.model import Model
from tokprune_rt.policy import compile_plan, parse_policy
from tokprune_rt.tokenizer import Tokens

_BATCH = 32
_ROUNDS, _SECONDS = 5, 15.0
# The break-even: lengths in tokens at which it is looked for, and what each may take.
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 256)
_SHORT_ROUNDS, _SHORT_SECONDS = 5, 2.0

Floats = NDArray[np.float32]


class Passes:
    """A model and tokenised texts."""

    def __init__(self, model: Model, tokens: Sequence[Tokens]) -> None:
        self.model, self.tokens = model, list(tokens)
        self._want: Literal["pooled", "logits"] = "pooled" if model.dimension else "logits"

    def plan(self, document: Mapping[str, Any] | None) -> _core.Plan | None:
        """The plan of a policy document for this model; None runs dense."""
        if document is None:
            return None
        model = self.model
        bound = choose_policy(parse_policy(document), model.folder, model.config, model.setup)
        compiled = compile_plan(bound) if bound is not None else None
        return None if compiled is None else _core.Plan(compiled)

    def run(self, plan: _core.Plan | None) -> tuple[Floats, int]:
        """Embeddings or logits, float32 [n, d], and multiply-adds."""
        parts: list[tuple[NDArray[np.int64], Floats]] = []
        macs = 0
        for places in batches([len(item) for item in self.tokens], _BATCH):
            found, _ = self.model.engine.forward([self.tokens[i] for i in places], self._want, plan)
            values = found[self._want]
            assert values is not None
            parts.append((places, values))
            macs += found["macs"]
        result = np.empty((len(self.tokens), parts[0][1].shape[1]), np.float32)
        for places, values in parts:
            result[places] = values
        return result, macs

    def time(
        self,
        documents: Sequence[Mapping[str, Any] | None],
        *,
        one_by_one: bool = False,
        rounds: int = _ROUNDS,
        seconds: float = _SECONDS,
    ) -> list[Timing]:
        """Times of passes over all texts, in turns; ``one_by_one``: a call for every text."""
        calls = [self._call(self.plan(document), one_by_one) for document in documents]
        for call in calls:
            call()
        return alternate(calls, rounds, seconds)

    def _call(self, plan: _core.Plan | None, one_by_one: bool) -> Callable[[], object]:
        if not one_by_one:
            return lambda: self.run(plan)

        def call() -> None:
            for item in self.tokens:
                self.model.engine.forward([item], self._want, plan)

        return call

    def cut(self, length: int) -> Passes | None:
        """Batches of texts cut to exactly this many tokens; None when hardly any is as long."""
        long = [item for item in self.tokens if len(item) >= length][:_BATCH]
        if len(long) < _BATCH // 2:
            return None
        keep = np.r_[0 : length - 1, -1]
        cut = [
            dataclasses.replace(
                item, ids=item.ids[keep], type_ids=item.type_ids[keep], segments=item.segments[keep]
            )
            for item in long
        ]
        return Passes(self.model, cut)


def break_even(passes: Passes, document: Mapping[str, Any]) -> dict[int, float]:
    """Length in tokens -> how many times as fast as dense the policy runs such texts."""
    found = {}
    for length in LENGTHS:
        cut = passes.cut(length)
        if cut is not None:
            dense, pruned = cut.time([None, document], rounds=_SHORT_ROUNDS, seconds=_SHORT_SECONDS)
            found[length] = pruned.times_faster_than(dense)
    return found


def shortest_gain(speeds: Mapping[int, float]) -> int:
    """The length from which on the policy is never slower than dense; 0 when it never is."""
    slow = [length for length, speed in speeds.items() if speed < 1]
    if not slow:
        return 0
    longer = [length for length in speeds if length > max(slow)]
    return min(longer) if longer else max(slow) + 1
