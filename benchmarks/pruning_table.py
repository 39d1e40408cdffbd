"""What learned pruning is worth on real tasks: dense, random, top-k, PoWER-BERT, LTP, ToP, gates.

    python benchmarks/pruning_table.py --data FOLDER --out DIR --task mrpc --task trec

FOLDER holds public sets: glue/MRPC, glue/RTE, glue/CoLA, glue/STS-B, glue/SST-2, sick, trec. All
models begin with all-MiniLM-L6-v2; their folders are kept in DIR and not trained again. A tenth of
the training examples is held out to choose by; scores are of the set's test or dev split, which
nothing was chosen on. Top-k and random leave the share of the tokens at which they do the work of
the learned method that leaves the most, on the dense model's weights.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pruning_parity import Parity, parity

from tokprune_rt.files import atomic_file
from tokprune_rt.loader import describe_model
from tokprune_rt.loading import load
from tokprune_rt.tokenizer import TextOrPair
from tokprune_rt.train import (
    Columns,
    Evaluation,
    Examples,
    Run,
    Settings,
    evaluate,
    finetune,
    read_examples,
    train_gate,
    train_ltp,
    train_power_bert,
    train_top,
)
from tokprune_rt.train.evaluating import run_texts
from tokprune_rt.train.folders import quiet_transformers
from tokprune_rt.train.latency import ratio_policy

MODEL, SEPARATOR = "all-MiniLM-L6-v2", 102
LEARNED = {
    "power-bert": train_power_bert,
    "ltp": train_ltp,
    "top": train_top,
    "gate": train_gate,
}


def tsv(path: str, text: str, pair: str | None = None, label: str = "label") -> Callable[..., Any]:
    return lambda folder: read_examples(folder / path, Columns(text, label, pair))


def sick(name: str) -> Callable[[Path], Examples]:
    def read(folder: Path) -> Examples:
        columns = Columns("sentence_A", "relatedness_score", "sentence_B")
        lines = (folder / "sick" / name).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines if line]
        places = [rows[0].index(column) for column in columns.names]
        texts: list[TextOrPair] = [(row[places[0]], row[places[1]]) for row in rows[1:]]
        return Examples(texts, [row[places[2]] for row in rows[1:]])

    return read


def trec(name: str) -> Callable[[Path], Examples]:
    def read(folder: Path) -> Examples:
        with zipfile.ZipFile(folder / "trec" / "qc.zip") as archive:
            lines = io.TextIOWrapper(archive.open(f"qc/{name}.txt"), encoding="latin-1")
            pairs = [line.strip().split(" ", 1) for line in lines if line.strip()]
        return Examples([text for _, text in pairs], [kind.split(":")[0] for kind, _ in pairs])

    return read


@dataclass(frozen=True)
class Set:
    """A task: its data, how it is scored, and the length that the literature pads it to."""

    train: Callable[[Path], Examples]
    test: Callable[[Path], Examples]
    padded_to: int
    metric: str | None = None
    regression: bool = False
    most: int = 0


_MRPC = {"text": "#1 String", "pair": "#2 String", "label": "Quality"}
_PAIR = {"text": "sentence1", "pair": "sentence2"}
SETS = {
    "mrpc": Set(tsv("glue/MRPC/train.tsv", **_MRPC), tsv("glue/MRPC/dev.tsv", **_MRPC), 128, "f1"),
    "rte": Set(tsv("glue/RTE/train.tsv", **_PAIR), tsv("glue/RTE/dev.tsv", **_PAIR), 256),
    "cola": Set(
        tsv("glue/CoLA/train.tsv", "3", label="1"),
        tsv("glue/CoLA/dev.tsv", "3", label="1"),
        64,
        "matthews",
    ),
    "sts-b": Set(
        tsv("glue/STS-B/train.tsv", **_PAIR, label="score"),
        tsv("glue/STS-B/dev.tsv", **_PAIR, label="score"),
        64,
        regression=True,
    ),
    "sst-2": Set(
        tsv("glue/SST-2/train.tsv", "sentence"),
        tsv("glue/SST-2/dev.tsv", "sentence"),
        64,
        most=16_000,
    ),
    "sick": Set(sick("SICK_train.txt"), sick("SICK_test_annotated.txt"), 64, regression=True),
    "trec": Set(trec("train"), trec("test"), 64),
}


def split(data: Examples, most: int, seed: int) -> tuple[Examples, Examples]:
    """Training examples, and the tenth that is held out."""
    order = np.random.default_rng(seed).permutation(len(data))
    if most:
        order = order[:most]
    held = len(order) // 10

    def part(places: Any) -> Examples:
        return Examples([data.texts[i] for i in places], [data.labels[i] for i in places])

    return part(order[held:]), part(order[:held])


def train_all(
    name: str,
    methods: list[str],
    target: float,
    data: Path,
    out: Path,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """The folders of a task, where they are not there yet."""
    chosen = SETS[name]
    train, held = split(chosen.train(data), chosen.most, seed)
    settings = Settings(seed=seed)

    def run(source: Path | str, target: Path) -> Run:
        return Run(
            str(source), target, train, held, chosen.regression, chosen.metric, None, settings, say
        )

    for method in ("dense", *methods):
        folder = out / method
        if folder.exists():
            continue
        begin = time.perf_counter()
        if method == "dense":
            finetune(run(MODEL, folder))
        else:
            LEARNED[method](run(out / "dense", folder), target=target)
        say(f"{name}, {method}: {time.perf_counter() - begin:.0f} s")


def equal_work(folder: Path, data: Examples, kind: str, macs: float) -> dict[str, Any]:
    """The policy of this kind that does ``macs`` of the dense model's work."""
    layers = describe_model(folder)[0].layers
    score = {"kind": "attn_col"} if kind == "topk" else {"kind": "random"}

    def policy(share: float) -> dict[str, Any]:
        protect = {"first": True, "token_ids": [SEPARATOR]}
        return ratio_policy(layers, share, score) | {"protect": protect}

    low, high = 0.0, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        model = load(folder, policy(middle))
        found = run_texts(model, model.tokenizer.tokenize(data.texts), None)
        low, high = (low, middle) if found.macs > macs * found.macs_dense else (middle, high)
    return policy((low + high) / 2)


def measure(
    name: str, methods: list[str], data: Path, out: Path, threads: int
) -> list[tuple[str, Evaluation]]:
    """Every method's evaluation on the reported split."""
    chosen = SETS[name]
    test = chosen.test(data)

    def run(folder: Path, policy: Any) -> Evaluation:
        return evaluate(
            folder,
            test,
            policy=policy,
            metric=chosen.metric,
            precisions=("fp32", "int8"),
            padded_to=chosen.padded_to,
            threads=threads,
        )

    learned = {method: run(out / method, "auto") for method in methods}
    # Least first: a baseline may not profit from a method that missed its budget.
    macs = max(row.macs for found in learned.values() for row in found.rows if row.macs < 1)
    rows = [("dense", run(out / "dense", "off"))]
    for kind in ("random", "topk"):
        rows.append((kind, run(out / "dense", equal_work(out / "dense", test, kind, macs))))
    return [*rows, *learned.items()]


def markdown(found: dict[str, list[tuple[str, Evaluation]]]) -> str:
    lines = [
        "| | | score | MACs | of padded | fp32 ms | int8 ms | int8 score | as fast (fp32, int8) |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in found.items():
        for method, evaluation in rows:
            last = {row.precision: row for row in evaluation.rows}
            fp32, int8 = last["fp32"], last["int8"]
            lines.append(
                f"| {name} | {method} | {fp32.score:.2f} | {fp32.macs:.0%} | "
                f"{fp32.macs / fp32.macs_padded:.0%} | {fp32.ms:.0f} | {int8.ms:.0f} | "
                f"{int8.score:.2f} | {fp32.speedup:.2f}x, {int8.speedup:.2f}x |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--task", action="append", choices=list(SETS), help="repeatable")
    parser.add_argument("--method", action="append", choices=list(LEARNED), help="repeatable")
    parser.add_argument("--target-macs", type=float, default=0.45)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_transformers()
    found: dict[str, list[tuple[str, Evaluation]]] = {}
    same: dict[str, dict[str, Parity]] = {}
    for name in options.task or list(SETS):
        out = options.out / f"{name}-{options.seed}"
        methods = options.method or list(LEARNED)
        say = partial(print, flush=True)
        train_all(name, methods, options.target_macs, options.data, out, options.seed, say)
        found[name] = measure(name, methods, options.data, out, options.threads)
        test = SETS[name].test(options.data)
        same[name] = {m: parity(out / m, test, SETS[name].metric) for m in methods}
    print(markdown(found))
    for name, methods_of in same.items():
        for method, both in methods_of.items():
            print(
                f"{name}, {method}: {both.different} of {both.decisions} decisions differ between "
                f"training and runtime; {both.training_score:.4f} and {both.runtime_score:.4f}"
            )
    if options.json:
        content = {
            name: {
                "rows": [{"method": method, **evaluation.to_dict()} for method, evaluation in rows],
                "parity": {method: asdict(both) for method, both in same[name].items()},
            }
            for name, rows in found.items()
        }
        with atomic_file(options.json) as file:
            file.write(json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    main()
