"""The engine beside the masked PyTorch reference on real weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from engine_calls import SLACK
from reference import compare_output, run

from tokprune_rt import _core
from tokprune_rt.policy import ModelInfo, bind_policy, compile_plan, parse_policy

LAYERS = 6


@dataclass(frozen=True)
class Tolerance:
    """How far the engine may be from the reference in `arithmetic` (reference/rounding.py).

    States are compared absolutely, scores relative to the mean score of their layer; decisions
    are equal unless the reference itself was within `band` of deciding otherwise, which may happen
    to all but a share `agreeing` of the sequences.
    """

    arithmetic: str = "fp32"
    states: float = 5e-5 * SLACK
    scores: float = 1e-3
    band: float = 1e-5 * SLACK
    agreeing: float = 0.98


FP32 = Tolerance()


def fewer(token_ids: list[list[int]], step: int = 5) -> list[list[int]]:
    """A fifth of the texts, and the extreme lengths."""
    return [*token_ids[:-4:step], *token_ids[-4:]]


def plan_of(document: dict[str, Any], layers: int = LAYERS) -> dict[str, Any]:
    info = ModelInfo(layers=layers, vocab_size=30522, max_positions=512)
    plan = compile_plan(bind_policy(parse_policy(document, document.pop("tensors", None)), info))
    assert plan is not None
    return plan


def chunks(token_ids: list[list[int]], padded_tokens: int = 4096) -> Iterator[list[list[int]]]:
    """Sequences of similar length together, so that the padded reference stays small."""
    chunk: list[list[int]] = []
    for row in sorted(token_ids, key=len):
        if chunk and len(row) * (len(chunk) + 1) > padded_tokens:
            yield chunk
            chunk = []
        chunk.append(row)
    yield chunk


def forward(encoder: Any, rows: list[list[int]], plan: dict[str, Any] | None) -> dict[str, Any]:
    """One call of the engine, with a trace."""
    flat = np.concatenate([np.asarray(row, np.int32) for row in rows])
    bounds = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    compiled = None if plan is None else _core.Plan(plan)
    return encoder.forward(flat, bounds, plan=compiled, trace=True)


def check(
    encoder: Any,
    torch_model: Any,
    token_ids: list[list[int]],
    plan: dict[str, Any],
    tolerance: Tolerance = FP32,
) -> float:
    """Asserts equal decisions outside the tie band and equal states; returns the kept share."""
    agreeing = kept = 0
    for rows in chunks(token_ids):
        reference = run(
            torch_model,
            rows,
            plan,
            dtype=torch.float32,
            pooling=["mean"],
            precision=tolerance.arithmetic,
        )
        result = compare_output(reference, forward(encoder, rows, plan), tolerance.band)
        assert result.mismatches == []
        assert result.hidden <= tolerance.states
        assert result.pooled <= tolerance.states
        assert result.scores <= tolerance.scores
        agreeing += len(result.agreeing)
        kept += sum(map(len, reference.kept[-1]))
    # Rounded down: of few texts, one may meet a tie.
    least = int(tolerance.agreeing * len(token_ids))
    assert agreeing >= least, "too many ties to mean anything"
    return kept / sum(map(len, token_ids))
