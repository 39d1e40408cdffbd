"""What learned pruning is worth on real tasks: dense, random, entropy, top-k, PoWER-BERT, LTP, ToP,
gates.

    python benchmarks/pruning_table.py --data FOLDER --out DIR --task mrpc --task trec

FOLDER holds public sets, see pruning_sets.py. All models begin with all-MiniLM-L6-v2; their folders
are kept in DIR and not trained again. A tenth of the training examples is held out to choose by;
scores are of the set's test or dev split, which nothing was chosen on. Random, entropy and top-k
leave a share of the tokens that falls linearly from layer to layer, as fast as it takes to do the
work of the learned method that does the most, on the dense model's weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pruning_parity import Parity, parity
from pruning_sets import SETS, longest, part, reported, split

from tokprune_rt.files import atomic_file
from tokprune_rt.loader import describe_model
from tokprune_rt.loading import load
from tokprune_rt.policy import find_policy
from tokprune_rt.train import (
    SCHEDULES,
    Data,
    Evaluation,
    Run,
    Settings,
    evaluate,
    finetune,
    train_gate,
    train_ltp,
    train_power_bert,
    train_top,
)
from tokprune_rt.train.evaluating import run_texts, task_of
from tokprune_rt.train.folders import quiet_transformers
from tokprune_rt.train.latency import ratio_policy
from tokprune_rt.train.leaving import leaving_of

MODEL, SEPARATOR = "all-MiniLM-L6-v2", 102
BASELINES = {
    "random": {"kind": "random"},
    "entropy": {"kind": "row_entropy"},
    "topk": {"kind": "attn_col"},
}
LEARNED = {
    "power-bert": train_power_bert,
    "ltp": train_ltp,
    "top": train_top,
    "gate": train_gate,
}


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
    whole = chosen.train(data)
    train, held = split(whole, chosen.most, seed)
    settings = Settings(seed=seed)

    length = chosen.learned_at or chosen.max_length

    def run(source: Path | str, target: Path, examples: Data) -> Run:
        return Run(
            str(source),
            target,
            examples,
            held,
            chosen.regression,
            chosen.metric,
            length,
            settings,
            say,
        )

    for method in ("dense", *methods):
        folder = out / method
        if folder.exists():
            check_target(folder, target if method != "dense" else None)
            continue
        begin = time.perf_counter()
        learning = out / f"{method}-learning"  # the name comes last, when everything is there
        if method == "dense":
            finetune(run(MODEL, learning, train), rate=chosen.rate)
        else:
            if chosen.longest:
                held_out = chosen.longest // 10
                train = longest(train, chosen.longest - held_out)
                held = longest(held, held_out)
            examples, schedule = train, SCHEDULES[method]
            if method in chosen.all_to_prune:
                examples, _ = split(whole, 0, seed, len(held))
                schedule = replace(schedule, epochs=1, copies=0)
            elif chosen.copies is not None:
                schedule = replace(schedule, copies=chosen.copies)
            source = run(out / "dense", learning, examples)
            LEARNED[method](source, target=target, schedule=schedule)
        if chosen.max_length is not None:
            set_length(learning, chosen.max_length)
        learning.rename(folder)
        say(f"{name}, {method}: {time.perf_counter() - begin:.0f} s")


def check_target(folder: Path, target: float | None) -> None:
    """ValueError for a folder that learned another budget."""
    policy = find_policy(folder)
    found = None if policy is None else policy.provenance["target"]
    if found != target:
        raise ValueError(f"{folder} learned the target {found}, asked for {target}: delete it")


def set_length(folder: Path, tokens: int) -> None:
    """Make the model in ``folder`` read texts of so many tokens, whatever it learned from."""
    path = folder / "tokenizer_config.json"
    options = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**options, "model_max_length": tokens}, indent=2), encoding="utf-8")


def equal_work(folder: Path, data: Data, kind: str, macs: float) -> dict[str, Any]:
    """The policy of this kind that does ``macs`` of the dense model's work, on part of the data."""
    data = part(data, range(0, len(data), max(1, len(data) // 128)))
    config = describe_model(folder)[0]

    def policy(share: float) -> dict[str, Any]:
        protect = {"first": True, "token_ids": [SEPARATOR]}
        policy = ratio_policy(config.layers, share, BASELINES[kind]) | {"protect": protect}
        return leaving_of(config.task).document(policy)

    low, high = 2.0 - config.layers, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        model = load(folder, policy(middle))
        found = run_texts(model, task_of(model, None).encode(data, model.tokenizer).tokens, None)
        low, high = (low, middle) if found.macs > macs * found.macs_dense else (middle, high)
    return policy((low + high) / 2)


def measure(
    name: str, methods: list[str], data: Path, out: Path, threads: int, rounds: int
) -> list[tuple[str, Evaluation]]:
    """Every method's evaluation on the reported split."""
    chosen = SETS[name]
    test = reported(chosen, data)

    def run(folder: Path, policy: Any) -> Evaluation:
        return evaluate(
            folder,
            test,
            policy=policy,
            metric=chosen.metric,
            precisions=("fp32", "int8"),
            padded_to=chosen.padded_to,
            threads=threads,
            rounds=rounds,
        )

    learned = {method: run(out / method, "auto") for method in methods}
    macs = max(row.macs for found in learned.values() for row in found.rows if row.macs < 1)
    rows = [("dense", run(out / "dense", "off"))]
    for kind in BASELINES:
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
    parser.add_argument("--rounds", type=int, default=5, help="timed passes of each row, at most")
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
        found[name] = measure(name, methods, options.data, out, options.threads, options.rounds)
        test = reported(SETS[name], options.data)
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
