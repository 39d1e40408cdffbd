"""Calls that the engine cuts: each sequence's results are those of a call of its own.

Three ways (model/engine.cpp): micro-batches one after the other; for several threads and enough
tokens, micro-batches that one thread each runs alone; and all threads on few long sequences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import random_model as rm
from engine_calls import (
    LEVELS,
    LEVELS_AND_PRECISIONS,
    assert_same_parts,
    encoder,
    models_and_plans,
    plan,
    split,
)

from tokprune_rt import _core

POSITIONS = 128
# For two threads: nothing to cut, just not enough, just enough, uneven, and one after the other.
SIZES = {
    "too few tokens": [128] * 3 + [127],
    "too few parts": [128] * 5,
    "as few as there may be": [128] * 8,
    "uneven": [128, 1, 64, 100, 128, 2, 128, 128, 33, 128, 90, 128, 128, 17, 128, 128, 5],
    "more than one micro-batch": [100, 128, 31] * 20,
}
NAMES = (None, "threshold drop mid", "threshold_rel restore post", "topk package mid")
CASES = [case for case in models_and_plans() if case[1] in NAMES]


class Extras:
    """Every optional input of a call, by sequence."""

    def __init__(self, sequences: list[rm.Tokens]) -> None:
        rng = np.random.default_rng(len(sequences))
        self.segments = [rng.integers(0, 3, len(item)).astype(np.int32) for item in sequences]
        self.protect = [(rng.random(len(item)) < 0.1).astype(np.uint8) for item in sequences]
        self.skip = [int(rng.integers(0, min(len(item), 4))) for item in sequences]

    def of(self, rows: slice) -> dict[str, Any]:
        return {
            "segment_ids": np.concatenate(self.segments[rows]),
            "protect": np.concatenate(self.protect[rows]),
            "pool_skip": np.array(self.skip[rows], dtype=np.int32),
            "normalize": True,
        }


def check(
    engine: Any, alone: Any, sequences: list[rm.Tokens], per_token: bool, **options: Any
) -> None:
    """Every sequence has the bits, and the call the work, of calls with one sequence."""
    extras = Extras(sequences)
    out = rm.forward(engine, sequences, **extras.of(slice(None)), **options)
    parts = split(out, sequences, per_token)
    macs = 0
    for i, item in enumerate(sequences):
        one = rm.forward(alone, [item], **extras.of(slice(i, i + 1)), **options)
        assert_same_parts(parts[i], split(one, [item], per_token)[0], f"of sequence {i}")
        macs += one["macs"]
    assert out["macs"] == macs


def tokens(model: str, sizes: list[int]) -> list[rm.Tokens]:
    shape = rm.config(**rm.MODELS[model], max_positions=POSITIONS)
    return [rm.tokens(shape, size, i) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("level", "precision"), LEVELS_AND_PRECISIONS)
def test_a_cut_does_not_show(level: str, precision: str, sizes: list[int]) -> None:
    sequences = tokens("first", sizes)
    alone = encoder("first", level, 1, precision, max_positions=POSITIONS)
    two = encoder("first", level, 2, precision, max_positions=POSITIONS)
    check(two, alone, sequences, False)
    check(two, alone, sequences, False, plan=plan("threshold drop mid"), trace=True)


@pytest.mark.parametrize(("model", "name"), CASES)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_output_of_a_cut_call(threads: int, model: str, name: str | None) -> None:
    """Whatever is wanted, and with a trace, on the best level."""
    shape = rm.config(**rm.MODELS[model])
    sequences = tokens(model, SIZES["uneven"] * 3)
    assert sum(map(len, sequences)) > 4096, "several micro-batches on one thread, too"
    alone = encoder(model, LEVELS[-1], 1, "fp32", max_positions=POSITIONS)
    engine = encoder(model, LEVELS[-1], threads, "fp32", max_positions=POSITIONS)
    wants = ["hidden", *(["pooled"] if shape["pooling"] else [])]
    wants += ["logits"] if shape["head"] != "none" else []
    for want in wants:
        for trace in (False, True):
            check(
                engine, alone, sequences, model == "token", plan=plan(name), want=want, trace=trace
            )


@pytest.mark.parametrize(("level", "precision"), LEVELS_AND_PRECISIONS)
def test_long_sequences_share_the_threads(level: str, precision: str) -> None:
    """Fewer sequences than twice the threads, of more tokens than one micro-batch holds."""
    shape = rm.config(layers=1, max_positions=1500)
    weights = rm.tensors(shape)
    one, two = (_core.Encoder(shape, weights, n, level, precision) for n in (1, 2))
    sequences = [rm.tokens(shape, length, 1) for length in (1500, 1499, 1498)]
    step = rm.step(0, "mid", "drop", "ratio", ratio=0.5, of="n", round="ceil")
    half = _core.Plan(rm.plan(rm.score("attn_col"), [step], layers=1))
    for chosen in (None, half):
        check(two, one, sequences, False, plan=chosen)
