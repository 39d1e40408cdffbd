"""Measured time of merging against dense, by length: does it follow the multiply-adds?

    python benchmarks/embedding_time.py --precision fp32 --precision int8 --json time.json
    python benchmarks/embedding_time.py --policy calibrated=policy.json

Batches of 32 of Python's documentation strings, cut to equal length, through all-MiniLM-L6-v2.
Dense and each policy take turns; a ratio is the median over rounds of dense time to the policy's in
the same round. *Break-even* is the length from which on none is slower than dense, the least that
``skip_below`` should be.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from embedding_policies import METHODS, embed, plan_of
from quality import MODEL

import tokprune_rt
from tokprune_rt import Model, _core
from tokprune_rt.bench.texts import documents
from tokprune_rt.bench.timing import alternate
from tokprune_rt.calibration.passes import LENGTHS, Passes, shortest_gain
from tokprune_rt.files import atomic_file
from tokprune_rt.policy import PolicySource
from tokprune_rt.tokenizer import Tokens

# Shares kept per layer that leave about 1/1.25, 1/1.5 and 1/2 of the multiply-adds.
KEPT = (0.93, 0.87, 0.79)
_LIMIT_S = 60.0


@dataclass(frozen=True)
class Timed:
    """One policy at one length: milliseconds per batch, and dense divided by the policy."""

    policy: str
    precision: str
    length: int
    batch: int
    dense_ms: float
    ms: float
    speedup: float
    macs: float


def measure(
    model: Model, plans: dict[str, _core.Plan | None], tokens: list[Tokens], rounds: int
) -> list[Timed]:
    """Dense and every policy in turns; texts of equal length."""
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
            len(tokens[0]),
            len(tokens),
            dense.median_ms,
            timing.median_ms,
            timing.times_faster_than(dense),
            1 / embed(model, tokens, plan).macs,
        )
        for (name, plan), timing in zip(plans.items(), timings, strict=True)
    ]


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
            least = shortest_gain({row.length: row.speedup for row in part})
            end = (str(least) if least <= max(lengths) else "none") if least else "always"
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
        texts = Passes(model, model.tokenizer.tokenize(documents()))
        for length in map(int, options.lengths.split(",")):
            cut = texts.cut(length)
            if cut is None:
                raise SystemExit(f"too few texts of {length} tokens; expected at most 256")
            rows += measure(model, plans, cut.tokens, options.rounds)
            print(f"{precision}, {length} tokens: done", flush=True)
        print(markdown(rows), flush=True)
    if options.json is not None:
        document = {
            "format": "tokprune-embedding-time",
            "model": MODEL,
            "isa": model.isa,
            "threads": model.threads,
            "rows": [asdict(row) for row in rows],
        }
        with atomic_file(options.json) as file:
            file.write(json.dumps(document, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
