"""A trained model, pruned and in int8, against the padded fp32 that most people run.

    python benchmarks/pruning_headline.py --data FOLDER --out DIR --task trec --method ltp

DIR is that of pruning_table.py, whose folders must be there. The baseline is onnxruntime in fp32
with every text padded to the length that the literature pads the set to; scores are of the same
texts. All calls take turns. Sets of single texts only: onnxruntime is given no token types.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ladder import Result, Rung, Task, classify, head_of, markdown, onnxruntime_calls
from pruning_sets import SETS, Set, reported
from pruning_table import LEARNED

from tokprune_rt.bench.timing import alternate
from tokprune_rt.files import atomic_file
from tokprune_rt.loading import load
from tokprune_rt.model import Model
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train import Examples
from tokprune_rt.train.evaluating import answering, padded_macs, run_texts, task_of

SINGLE = ("cola", "sst-2", "trec", "20news")


def climb(
    name: str, chosen: Set, data: Path, out: Path, method: str, threads: int, rounds: int
) -> list[Rung]:
    """Onnxruntime padded, here unpadded, in int8, and pruned in both."""
    test = reported(chosen, data)
    assert isinstance(test, Examples)
    dense = load(out / "dense", precision="fp32", threads=threads)
    task = task_of(dense, chosen.metric)
    encoded = task.encode(test, dense.tokenizer)
    tokens: list[Tokens] = encoded.tokens

    def score(logits: Result) -> float:
        return task.score(list(logits), encoded)

    padded_task = Task(
        name,
        out / "dense",
        chosen.padded_to,
        [item.ids for item in tokens],
        [],
        classify,
        head_of(out / "dense"),
        lambda _, __, ___, logits: score(logits),
    )
    padded, padded_result = onnxruntime_calls(padded_task, threads)
    runs: list[tuple[str, Model, str | None]] = [("unpadded, fp32", dense, "off")]
    for precision in ("fp32", "int8"):
        model = load(out / method, precision=precision, threads=threads)
        if precision == "int8":
            plain = load(out / "dense", precision=precision, threads=threads)
            runs.append(("unpadded, int8", plain, "off"))
        runs.append((f"unpadded, {precision}, {method}", model, None))
    calls: list[Callable[[], object]] = [padded]
    calls += [answering(model, tokens, profile) for _, model, profile in runs]
    for call in calls:
        call()
    timings = alternate(calls, rounds, 60.0)
    work = padded_macs(dense, tokens, chosen.padded_to)
    passes = [run_texts(model, tokens, profile) for _, model, profile in runs]
    # The baseline's answers, so that nobody compares times of different models.
    theirs = padded_result()
    found = np.stack(passes[0].logits)
    if np.abs(theirs - found).max() > 1e-3:
        raise ValueError(f"{name}: onnxruntime's logits differ from the runtime's")
    rungs = [Rung(name, "onnxruntime, fp32, padded", score(theirs), work / passes[0].macs_dense)]
    for (label, _, _), one in zip(runs, passes, strict=True):
        logits = np.stack(one.logits)
        rungs.append(Rung(name, label, score(logits), one.macs / one.macs_dense))
    for rung, timing in zip(rungs, timings, strict=True):
        rung.ms, rung.speedup = timing.median_ms, timing.times_faster_than(timings[0])
    return rungs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--task", action="append", choices=SINGLE, help="repeatable")
    parser.add_argument("--method", choices=list(LEARNED), default="ltp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rungs: list[Rung] = []
    for name in options.task or SINGLE:
        out = options.out / f"{name}-{options.seed}"
        rungs += climb(
            name,
            SETS[name],
            options.data,
            out,
            options.method,
            options.threads,
            options.rounds,
        )
    print(markdown(rungs))
    if options.json:
        with atomic_file(options.json) as file:
            file.write(json.dumps([vars(rung) for rung in rungs], indent=2).encode())


if __name__ == "__main__":
    main()
