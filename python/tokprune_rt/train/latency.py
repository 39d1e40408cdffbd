"""From a wanted speed-up to multiply-adds, measured with this runtime on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokprune_rt.bench.timing import alternate
from tokprune_rt.loader import describe_model
from tokprune_rt.loading import load
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train.evaluating import answering, run_texts
from tokprune_rt.train.leaving import Leaving, leaving_of

# Shares of the input that the last layer keeps, in the policies that are timed.
_SHARES = (0.8, 0.6, 0.4, 0.25, 0.1)
_ROUNDS, _SECONDS = 5, 15.0


def ratio_policy(layers: int, last: float, score: dict[str, Any] | None = None) -> dict[str, Any]:
    """Each layer but the first keeps a share of the input that falls linearly to ``last``; below 0,
    to nothing before the last layer.

    The work depends on nothing but the lengths. ``score``: as in a policy; None: received
    attention.
    """
    shares = [max(0.0, round(1 - (1 - last) * i / (layers - 1), 4)) for i in range(1, layers)]
    step = {
        "layers": list(range(1, layers)),
        "site": "mid",
        "score": "score",
        "select": {"kind": "ratio", "ratio": shares, "of": "n0"},
        "action": {"kind": "drop"},
    }
    return {
        "format": "token-policy",
        "version": 1,
        "layers": layers,
        "protect": {"first": True},
        "scores": {"score": score or {"kind": "attn_col"}},
        "steps": [step],
    }


def macs_for_speedup(
    folder: Path,
    tokens: Sequence[Tokens],
    speedup: float,
    precision: str = "auto",
    threads: int | None = None,
    leaving: Leaving | None = None,
) -> float:
    """The share of the dense model's multiply-adds at which texts like these run so much faster.

    Policies of several strengths are timed against the dense pass; between them the time is
    interpolated. ``leaving``: how tokens leave; None: as the model's task has it.

    Raises:
        ValueError: no strength is as fast; says how fast they were.
    """
    if not speedup > 1:
        raise ValueError(f"speed-up: found {speedup}; allowed: above 1")
    config, _ = describe_model(folder)
    layers = config.layers
    strengths = {str(share): {"steps": [{"ratio": _ratios(layers, share)}]} for share in _SHARES}
    policy = ratio_policy(layers, _SHARES[0]) | {"profiles": strengths}
    policy = (leaving or leaving_of(config.task)).document(policy)
    model = load(folder, policy, precision=precision, threads=threads)
    names = ["off", *strengths]
    passes = [run_texts(model, tokens, name) for name in names]
    timings = alternate([answering(model, tokens, name) for name in names], _ROUNDS, _SECONDS)
    macs = [found.macs / found.macs_dense for found in passes]
    # Noise must not make a stronger policy slower.
    speeds = np.maximum.accumulate([timing.times_faster_than(timings[0]) for timing in timings])
    if speedup > speeds[-1]:
        raise ValueError(
            f"a speed-up of {speedup:g} is out of reach on this machine: with {macs[-1]:.0%} of "
            f"the multiply-adds these texts run {speeds[-1]:.2f} times as fast"
        )
    return float(np.interp(speedup, speeds, macs))


def _ratios(layers: int, last: float) -> list[float]:
    ratios: list[float] = ratio_policy(layers, last)["steps"][0]["select"]["ratio"]
    return ratios
