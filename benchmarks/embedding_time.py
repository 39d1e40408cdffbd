"""Measured time of merging against dense, by length: does it follow the multiply-adds?

    python benchmarks/embedding_time.py --precision fp32 --precision int8 --json time.json
    python benchmarks/embedding_time.py --policy calibrated=policy.json

32 texts of equal length, cut from Python's documentation strings, through all-MiniLM-L6-v2. Dense
and each policy take turns; a ratio is the median over rounds of dense time to the policy's in the
same round. *Break-even* is the first length from which no longer one is slower than dense: what
``skip_below`` should be at least.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from embedding_policies import METHODS, embed, plan_of
from quality import MODEL

import tokprune_rt
from tokprune_rt import Model, _core
from tokprune_rt.bench.texts import documents
from tokprune_rt.bench.timing import alternate
from tokprune_rt.files import atomic_file
from tokprune_rt.policy import PolicySource
from tokprune_rt.tokenizer import Tokens

LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
BATCH = 32
# Shares kept per layer that leave about 1/1.25, 1/1.5 and 1/2 of the multiply-adds.
KEPT = (0.93, 0.87, 0.79)
_LIMIT_S = 60.0


@dataclass(frozen=True)
class Timed:
    """One policy at one length: milliseconds per batch, and dense divided by the policy."""

    policy: str
    precision: str
    length: int
    dense_ms: float
    ms: float
    speedup: float
    macs: float


def texts_of(model: Model, length: int) -> list[Tokens]:
    """32 texts of exactly so many tokens, special tokens included."""
    (around,) = model.tokenizer.tokenize([""])
    stream = [
        i
        for item in model.tokenizer.raw_encodings(documents(), special_tokens=False)
        for i in item.ids
    ]
    step = length - len(around)
    zeros = np.zeros(length, np.int32)
    found = []
    for start in range(0, BATCH * step, step):
        body = stream[start : start + step]
        ids = np.array([around.ids[0], *body, *around.ids[1:]], np.int32)
        found.append(Tokens(ids, zeros, zeros))
    return found


def measure(
    model: Model, plans: dict[str, _core.Plan | None], length: int, rounds: int
) -> list[Timed]:
    """Dense and every policy in turns."""
    tokens = texts_of(model, length)
    calls = [
        partial(model.engine.forward, tokens, "pooled", plan, normalize=True)
        for plan in (None, *plans.values())
    ]
    for call in calls:
        call()
    dense, *timings = alternate(calls, rounds, _LIMIT_S)
    return [
        Timed(
            name,
            model.precision,
            length,
            dense.median_ms,
            timing.median_ms,
            timing.times_faster_than(dense),
            1 / embed(model, tokens, plan).macs,
        )
        for (name, plan), timing in zip(plans.items(), timings, strict=True)
    ]


def break_even(rows: Sequence[Timed]) -> int | None:
    """The first length from which on no text is slower than dense."""
    for i, row in enumerate(rows):
        if all(later.speedup >= 1 for later in rows[i:]):
            return row.length
    return None


def markdown(rows: Sequence[Timed]) -> str:
    """A line for each precision and policy, a column for each length."""
    lengths = list(dict.fromkeys(row.length for row in rows))
    titles = ["", *map(str, lengths), "break-even"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]

    def line(title: str, values: Sequence[float], end: str) -> str:
        return "| " + " | ".join([title, *(f"{value:.2f}" for value in values), end]) + " |"

    for policy in dict.fromkeys(row.policy for row in rows):
        mine = [row for row in rows if row.policy == policy]
        precisions = list(dict.fromkeys(row.precision for row in mine))
        work = [row.macs for row in mine if row.precision == precisions[0]]
        lines.append(line(f"{policy}: multiply-adds", work, ""))
        for precision in precisions:
            part = [row for row in mine if row.precision == precision]
            least = break_even(part)
            end = "none" if least is None else str(least)
            lines.append(line(f"{policy}: {precision}", [row.speedup for row in part], end))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", action="append", help="repeatable; default: fp32 and int8")
    parser.add_argument("--policy", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--kept", default=",".join(map(str, KEPT)), metavar="X,Y")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), metavar="A,B")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    sources: dict[str, PolicySource] = {
        f"merge, {kept} kept": METHODS["merge"](float(kept))
        for kept in filter(None, options.kept.split(","))
    }
    for item in options.policy:
        name, _, source = item.partition("=")
        sources[name] = source
    rows: list[Timed] = []
    for precision in options.precision or ["fp32", "int8"]:
        model = tokprune_rt.load(MODEL, policy="off", precision=precision, threads=options.threads)
        plans = {name: plan_of(model, source) for name, source in sources.items()}
        for length in map(int, options.lengths.split(",")):
            rows += measure(model, plans, length, options.rounds)
            print(f"{precision}, {length} tokens: done", flush=True)
    print(markdown(rows))
    if options.json is not None:
        document = {
            "format": "tokprune-embedding-time",
            "model": MODEL,
            "batch": BATCH,
            "isa": model.isa,
            "threads": model.threads,
            "rows": [asdict(row) for row in rows],
        }
        with atomic_file(options.json) as file:
            file.write(json.dumps(document, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
