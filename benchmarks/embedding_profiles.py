"""A model's policy on news: distance to dense, neighbours that stay, and time, for every profile.

    python benchmarks/embedding_profiles.py --data FOLDER
    python benchmarks/embedding_profiles.py --data FOLDER --model DIR --policy auto

FOLDER holds 20newsgroups; the texts are bodies of its test split. Distances are to the dense
all-MiniLM-L6-v2 whatever --model is, so that a model that has learned to be pruned is compared
with the index that is there already. Times: texts of 100 tokens and more in batches of 32, dense
and pruned in turns. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from embedding_policies import embed
from embedding_tasks import GROUP, overlap
from quality import MODEL
from quality_data import newsgroups

import tokprune_rt
from tokprune_rt.bench.timing import alternate

_LONG, _TIMED = 100, 160
_ROUNDS, _SECONDS = 5, 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--policy", default="calibrated")
    parser.add_argument("--precision", action="append", help="repeatable; default: fp32, int8")
    parser.add_argument("--groups", type=int, default=5, help=f"of {GROUP} texts")
    parser.add_argument("--skip", type=int, default=0, help="groups to leave out at the start")
    arguments = parser.parse_args()
    first, last = arguments.skip * GROUP, (arguments.skip + arguments.groups) * GROUP
    texts = newsgroups(arguments.data, "test", last, bodies=True).texts[first:]
    print(
        "| precision, profile | MACs | as fast | cosine | p5 | p1 | "
        "top 10: both | queries | index |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for precision in arguments.precision or ["fp32", "int8"]:
        reference = tokprune_rt.load(MODEL, "off", precision=precision)
        model = tokprune_rt.load(arguments.model, arguments.policy, precision=precision)
        tokens = model.tokenizer.tokenize(texts)
        timed = [item for item in tokens if len(item) >= _LONG][:_TIMED]
        dense = embed(reference, tokens, None)
        for profile in [None, *model.profiles[1:]]:
            plan = model.engine.plan(profile)
            found = embed(model, tokens, plan)
            cosines = (found.vectors.astype(np.float64) * dense.vectors).sum(axis=1)
            calls = [partial(embed, model, timed, each) for each in (None, plan)]
            off, pruned = alternate(calls, _ROUNDS, _SECONDS)
            kept = [
                overlap(index, queries, dense.vectors)
                for index, queries in (
                    (found.vectors, found.vectors),
                    (dense.vectors, found.vectors),
                    (found.vectors, dense.vectors),
                )
            ]
            low = np.quantile(cosines, (0.05, 0.01))
            print(
                f"| {precision}, {profile or 'policy'} | {dense.macs / found.macs:.2f}x "
                f"| {pruned.times_faster_than(off):.2f}x | {cosines.mean():.4f} | {low[0]:.4f} "
                f"| {low[1]:.4f} | " + " | ".join(f"{share:.3f}" for share in kept) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
