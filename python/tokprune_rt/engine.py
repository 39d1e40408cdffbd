"""Batches of token ids through the compiled encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tokprune_rt import _core
from tokprune_rt.loader import LoadedModel, PackedWeights
from tokprune_rt.policy import DEFAULT, OFF, Policy, compile_plan

if TYPE_CHECKING:
    from tokprune_rt._core import ForwardResult
    from tokprune_rt.tokenizer import Tokens

Ids = NDArray[np.int32]

# Nothing is padded, so a batch is measured in tokens: one of `batch_size` texts of this length.
TOKENS_PER_TEXT = 128


class Engine:
    """The packed encoder of one model with its policy's plans. Any thread may call it."""

    def __init__(
        self,
        loaded: LoadedModel,
        policy: Policy | None,
        threads: int | None,
        isa: str | None,
        precision: str,
    ) -> None:
        weights = loaded.weights
        self.core_config = loaded.core_config
        self.encoder = _core.Encoder(
            self.core_config,
            weights.shapes if isinstance(weights, PackedWeights) else weights,
            threads=threads or 0,
            isa=isa or "",
            precision=precision,
            packed=weights.data if isinstance(weights, PackedWeights) else None,
        )
        self._typed = loaded.config.type_vocab_size > 1
        self._policy = policy
        self._plans: dict[str | None, _core.Plan | None] = {OFF: None}

    @property
    def profiles(self) -> list[str]:
        """Names that a call may choose from."""
        return [OFF, *(self._policy.profiles if self._policy is not None else ())]

    def plan(self, profile: str | None) -> _core.Plan | None:
        """The compiled policy under ``profile``, None or `default` for its own numbers; None runs
        dense.

        Raises ValueError listing the profiles when there is no such profile.
        """
        # No lock, which a fork could inherit locked: compiling a plan twice does no harm.
        if profile not in self._plans:
            self._plans[profile] = self._compile(profile)
        return self._plans[profile]

    def _compile(self, profile: str | None) -> _core.Plan | None:
        if profile not in (None, DEFAULT) and profile not in self.profiles:
            raise ValueError(
                f"unknown profile {profile!r}; this model has: {', '.join(self.profiles)}"
            )
        plan = compile_plan(self._policy, profile) if self._policy is not None else None
        return _core.Plan(plan) if plan is not None else None

    def forward(
        self,
        sequences: Sequence[Tokens],
        want: Literal["hidden", "pooled", "logits"],
        plan: _core.Plan | None,
        *,
        protect: NDArray[np.uint8] | None = None,
        pool_skip: int | Sequence[int] = 0,
        normalize: bool = False,
        trace: bool = False,
    ) -> tuple[ForwardResult, Ids]:
        """Run one batch; returns the extension's result and the cumulative lengths [B + 1].

        ``pool_skip``: leading tokens that pooling leaves out, for all sequences or for each.
        """
        lengths = [len(item) for item in sequences]
        bounds = np.array([0, *accumulate(lengths)], dtype=np.int32)
        types = _joined([item.type_ids for item in sequences]) if self._typed else None
        segments = _joined([item.segments for item in sequences]) if plan is not None else None
        skips = _skips(lengths, pool_skip)
        result = self.encoder.forward(
            _joined([item.ids for item in sequences]),
            bounds,
            token_type_ids=types,
            segment_ids=segments,
            protect=protect,
            pool_skip=skips,
            plan=plan,
            want=want,
            normalize=normalize,
            trace=trace,
        )
        return result, bounds

    def run(
        self,
        sequences: Sequence[Tokens],
        want: Literal["pooled", "logits"],
        *,
        profile: str | None,
        batch_size: int,
        pool_skip: int = 0,
        normalize: bool = False,
    ) -> Iterator[tuple[NDArray[np.int64], ForwardResult, Ids]]:
        """Run any number of sequences, longest first.

        Yields, per batch, the indices of its sequences, the result and the cumulative lengths.
        """
        plan = self.plan(profile)
        for indices in batches([len(item) for item in sequences], batch_size):
            result, bounds = self.forward(
                [sequences[i] for i in indices],
                want,
                plan,
                pool_skip=pool_skip,
                normalize=normalize,
            )
            yield indices, result, bounds


def _skips(lengths: Sequence[int], pool_skip: int | Sequence[int]) -> Ids | None:
    """Leading tokens that pooling leaves out, never all of a sequence; None for none."""
    if not (pool_skip if isinstance(pool_skip, int) else any(pool_skip)):
        return None
    wanted = np.asarray(pool_skip, dtype=np.int32)
    skips: Ids = np.minimum(np.array(lengths, dtype=np.int32) - 1, wanted)
    return skips


def _joined(parts: Sequence[Ids]) -> Ids:
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def check_batch_size(batch_size: int) -> None:
    """ValueError or TypeError for a ``batch_size`` that is no positive integer."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"batch_size must be an int, got {type(batch_size).__name__}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Indices of sequences in batches of at most ``batch_size * 128`` tokens, longest first.

    A single sequence longer than that is a batch of its own. Errors as `check_batch_size`.
    """
    check_batch_size(batch_size)
    budget = int(batch_size) * TOKENS_PER_TEXT
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    start = total = 0
    for place, index in enumerate(order):
        total += lengths[index]
        if total > budget and place > start:
            yield order[start:place]
            start, total = place, lengths[index]
    if start < len(order):
        yield order[start:]
