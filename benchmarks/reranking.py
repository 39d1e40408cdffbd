"""What pruning the documents of a reranker costs and saves: TrecQA, a cross-encoder from MiniLM.

    python benchmarks/reranking.py --data FOLDER --out DIR --learn "attention, query rows=1.75"

FOLDER holds public sets; the model learns from SQuAD (reranking_data.py says why) and from
trecqa/train.csv, without a fifth of its questions, and everything reported is of trecqa/dev.csv.
Models are kept in DIR and not trained again. Policies of all kinds are brought to the same work by
one number; those of --learn also have weights that learned under them. MAP and MRR are of the
questions with a right and a wrong sentence; the interval of a loss is of 95%, from 10,000 draws of
questions. Passes over 320 pairs are timed in turns with the dense one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reranking_data import METRIC, held_out, read, train
from reranking_policies import LEARNABLE, METHODS, at_equal_work

from tokprune_rt.bench.timing import alternate
from tokprune_rt.files import atomic_file
from tokprune_rt.loading import load
from tokprune_rt.policy import OFF
from tokprune_rt.train.data import Encoded
from tokprune_rt.train.evaluating import Texts, answering, run_texts, task_of
from tokprune_rt.train.folders import quiet_transformers
from tokprune_rt.train.ranking import per_query

_SAMPLE, _TIMED, _ROUNDS, _SECONDS = 64, 320, 7, 60.0
_BEST = 5


@dataclass(frozen=True)
class Row:
    """One way to rank, in one precision.

    Attributes:
        learned: the weights learned under the policy.
        held: MAP of the questions that were held out of the training set.
        loss: MAP of the dense model in fp32 less this; ``least``, ``most``: its interval.
        macs: multiply-adds of dense by this.
        rescored: MAP when the best of each question are scored again by the dense model in fp32 and
            come first.
        ms: of the timed pairs; ``speedup``: the dense pass of the same precision took as many times
            as long.
    """

    name: str
    profile: str
    precision: str
    learned: bool
    held: float
    map: float
    mrr: float
    rescored: float
    loss: float
    least: float
    most: float
    macs: float
    ms: float
    speedup: float


@dataclass(frozen=True)
class Sets:
    held: Encoded
    test: Encoded
    exact: NDArray[np.float32]
    """Of the test pairs, by the dense model in fp32."""

    def rescored(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same, but the best `_BEST` of each question as the dense model orders them."""
        found = scores - 1e3
        for question in np.unique(self.test.truth):
            places = np.flatnonzero(self.test.truth == question)
            best = places[np.argsort(-scores[places], kind="stable")[:_BEST]]
            found[best] = self.exact[best]
        return found


def of_questions(metric: str, scores: NDArray[np.float32], data: Encoded) -> NDArray[np.float64]:
    return per_query(metric, scores, data.targets.numpy(), data.truth)


def scores_of(found: Texts) -> NDArray[np.float32]:
    return np.stack(found.logits)[:, 0]


def interval(losses: NDArray[np.float64]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(losses, (10_000, len(losses))).mean(axis=1)
    least, most = np.percentile(drawn, [2.5, 97.5])
    return float(least), float(most)


def measure(
    name: str, folder: Path, policy: Any, learned: bool, precision: str, threads: int, sets: Sets
) -> list[Row]:
    """Every profile of the policy, or the dense pass of a folder without."""
    model = load(folder, policy, precision=precision, threads=threads)
    profiles: list[str | None] = [OFF]
    if model.policy is not None:
        profiles = list(model.policy.profiles) or [None]
    places = np.random.default_rng(0).permutation(len(sets.test))[:_TIMED]
    timed = [sets.test.tokens[place] for place in places]
    calls = [answering(model, timed, profile) for profile in (OFF, *profiles)]
    for call in calls:
        call()
    dense, *timings = alternate(calls, _ROUNDS, _SECONDS)
    rows = []
    for profile, timing in zip(profiles, timings, strict=True):
        found = run_texts(model, sets.test.tokens, profile)
        held = scores_of(run_texts(model, sets.held.tokens, profile))
        scores = scores_of(found)
        each = of_questions(METRIC, scores, sets.test)
        losses = of_questions(METRIC, sets.exact, sets.test) - each
        row = Row(
            name,
            profile or "policy",
            precision,
            learned,
            float(of_questions(METRIC, held, sets.held).mean()),
            float(each.mean()),
            float(of_questions("mrr", scores, sets.test).mean()),
            float(of_questions(METRIC, sets.rescored(scores), sets.test).mean()),
            float(losses.mean()),
            *interval(losses),
            found.macs_dense / found.macs,
            timing.median_ms,
            timing.times_faster_than(dense),
        )
        print(row, flush=True)
        rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    lines = [
        f"| | MACs | MAP held out | MAP | MRR | MAP lost | best {_BEST} rescored | fp32 | int8 | "
        "int8 MAP |",
        "|---|" + "--:|" * 9,
    ]
    int8 = {(r.name, r.profile, r.learned): r for r in rows if r.precision == "int8"}
    for row in rows:
        if row.precision != "fp32":
            continue
        narrow = int8[row.name, row.profile, row.learned]
        name = row.name + (", learned" if row.learned else "")
        lines.append(
            f"| {name} | {row.macs:.2f}x | {row.held:.3f} | {row.map:.3f} | {row.mrr:.3f} | "
            f"{row.loss:+.3f} ({row.least:+.3f} to {row.most:+.3f}) | "
            f"{row.rescored:.3f} | {row.speedup:.2f}x | "
            f"{narrow.speedup:.2f}x | {narrow.map:.3f} |"
        )
    return "\n".join(lines)


def _learn(text: str) -> tuple[str, float]:
    name, _, target = text.rpartition("=")
    if name not in LEARNABLE:
        raise argparse.ArgumentTypeError(f"found {name!r}; known: {', '.join(LEARNABLE)}")
    return name, float(target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--learn",
        action="append",
        type=_learn,
        default=[],
        metavar="METHOD=TARGET",
        help=f"train under this policy: {', '.join(LEARNABLE)}; repeatable",
    )
    parser.add_argument(
        "--ltp", action="append", type=float, default=[], metavar="SHARE", help="of the work left"
    )
    parser.add_argument(
        "--target", action="append", type=float, metavar="X", help="default: 1.25, 1.5 and 1.75"
    )
    parser.add_argument(
        "--method", action="append", choices=list(METHODS), help="repeatable; default: all"
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_transformers()
    targets = options.target or [1.25, 1.5, 1.75]
    dense = options.out / "dense"
    learn = partial(train, options.data, options.out, seed=options.seed, epochs=options.epochs)
    learn()
    model = load(dense, OFF, precision="fp32", threads=options.threads)
    task = task_of(model, METRIC)
    held, test = (
        task.encode(examples, model.tokenizer)
        for examples in (
            held_out(read(options.data, "train"), options.seed)[1],
            read(options.data, "dev"),
        )
    )
    found = run_texts(model, test.tokens, OFF)
    sets = Sets(held, test, scores_of(found))
    count = len(of_questions(METRIC, sets.exact, test))
    print(f"{len(test)} pairs, {found.tokens} tokens, {count} questions count", flush=True)

    def policy(name: str, aims: list[float]) -> dict[str, Any] | None:
        return at_equal_work(dense, held.tokens[:_SAMPLE], name, aims)

    under: dict[str, Any] = {}
    for name, target in options.learn:
        made = policy(name, [target])
        if made is None:
            raise ValueError(f"{name} does not reach {target:g}x")
        (profile,) = made.pop("profiles").values()
        made["steps"][0]["select"].update(profile["steps"][0])
        under[f"{name}, {target:g}x"] = made
    learn(policies=under, shares=options.ltp)
    kinds: list[tuple[str, Path, Any, bool]] = [("dense", dense, OFF, False)]
    for name in options.method or METHODS:
        made = policy(name, targets)
        kinds.append((name, dense, made, False))
        with atomic_file(options.out / f"{name}.json") as file:
            file.write(json.dumps(made, indent=2).encode())
    learned = [*under, *(f"ltp-{share:g}" for share in options.ltp)]
    kinds += [(name, options.out / name, "auto", True) for name in learned]
    rows = [
        row
        for precision in ("fp32", "int8")
        for name, folder, made, is_learned in kinds
        if made is not None
        for row in measure(name, folder, made, is_learned, precision, options.threads, sets)
    ]
    print(markdown(rows))
    if options.json:
        with atomic_file(options.json) as file:
            file.write(json.dumps([asdict(row) for row in rows], indent=2).encode())


if __name__ == "__main__":
    main()
