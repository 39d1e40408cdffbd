"""Reranking 100 candidates: sentence-transformers' CrossEncoder on its backends, and here.

    pip install "sentence-transformers[onnx,openvino]"
    python benchmarks/reranking_peers.py --data FOLDER --model DIR/dense --pruned DIR/NAME

DIR is that of reranking.py, NAME one of its folders, or a policy's file for the dense weights.
Every engine gets the same questions, texts and number of threads, through `CrossEncoder.rank`,
texts to order. Scores are compared with torch's before anything is timed; all calls take turns. A
backend that does not load is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import BACKENDS, backend_options, installed
from reranking_data import MAX_LENGTH, queries_of, read

import tokprune_rt
from tokprune_rt.bench.timing import alternate
from tokprune_rt.files import atomic_file
from tokprune_rt.train.folders import quiet_transformers

CANDIDATES, QUESTIONS, ROUNDS, SECONDS = 100, 4, 15, 240.0
LARGEST_DIFFERENCE = 1e-4
"""Between two engines' scores, which are between 0 and 1, in fp32."""

Requests = list[tuple[str, list[str]]]


def requests_of(data: Path, seed: int) -> Requests:
    """Questions, each with its own sentences and others' up to `CANDIDATES`, in random order."""
    pairs = read(data, "dev")
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(queries_of(pairs)))
    found = []
    for place in rng.permutation(len(names))[:QUESTIONS]:
        own = [text[1] for text in pairs.texts if text[0] == names[place]][:CANDIDATES]
        rest = [text[1] for text in pairs.texts if text[0] != names[place]]
        more = rng.choice(len(rest), CANDIDATES - len(own), replace=False)
        documents = own + [rest[i] for i in more]
        found.append((names[place], [documents[i] for i in rng.permutation(CANDIDATES)]))
    return found


def theirs(folder: Path, backend: str, threads: int) -> Any:
    """sentence-transformers' class on this backend, in fp32."""
    kind = import_module("sentence_transformers").CrossEncoder
    return kind(
        str(folder),
        device="cpu",
        max_length=MAX_LENGTH,
        backend=backend,
        model_kwargs=backend_options(backend, threads),
    )


def scores_of(model: Any, requests: Requests, **options: Any) -> np.ndarray[Any, Any]:
    rows = []
    for query, documents in requests:
        row = np.empty(len(documents), np.float64)
        for entry in model.rank(query, documents, **options):
            row[entry["corpus_id"]] = entry["score"]
        rows.append(row)
    return np.array(rows)


def order_agreement(found: Any, exact: Any, top: int = 10) -> float:
    """Share of the dense model's best ``top`` among the best ``top``, mean over questions."""
    best = [set(np.argsort(-row, kind="stable")[:top]) for row in found]
    wanted = [set(np.argsort(-row, kind="stable")[:top]) for row in exact]
    return float(np.mean([len(a & b) / top for a, b in zip(best, wanted, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pruned", type=Path, required=True, metavar="PATH")
    parser.add_argument("--profile", help="of the policy; default: its own numbers")
    parser.add_argument("--rescore", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_transformers()
    requests = requests_of(options.data, options.seed)
    calls: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}

    def add(name: str, model: Any, note: str = "", **chosen: Any) -> None:
        def call() -> None:
            for query, documents in requests:
                model.rank(query, documents, **chosen)

        call()
        calls[name], notes[name] = call, note

    packages = ["sentence-transformers", "transformers", "torch", "optimum-onnx", "onnxruntime"]
    packages += ["optimum-intel", "openvino"]
    print(installed(*packages), flush=True)
    reference = theirs(options.model, "torch", options.threads)
    exact = scores_of(reference, requests)
    peers = []
    for backend in BACKENDS:
        try:
            model = (
                reference if backend == "torch" else theirs(options.model, backend, options.threads)
            )
        except Exception as error:
            print(f"{backend} is left out: {str(error).splitlines()[0]}", flush=True)
            continue
        difference = float(np.abs(scores_of(model, requests) - exact).max())
        if difference > LARGEST_DIFFERENCE:
            raise ValueError(f"{backend}: scores differ from torch's by {difference:.2g}")
        peers.append(f"sentence-transformers, {backend}")
        add(peers[-1], model, f"{difference:.0e}")
    folder, policy = options.pruned, "auto"
    if folder.is_file():
        folder, policy = options.model, str(options.pruned)
    best = options.rescore
    for kind, source, profile, rescore in (
        ("dense", options.model, "off", None),
        ("pruned", folder, options.profile, None),
        (f"pruned, best {best} rescored", folder, options.profile, best),
    ):
        for precision in ("fp32", "int8"):
            ours = tokprune_rt.CrossEncoder(
                str(source), policy=policy, precision=precision, threads=options.threads
            )
            found = scores_of(ours, requests, profile=profile, rescore=rescore)
            difference = float(np.abs(found - exact).max())
            if (kind, precision) == ("dense", "fp32") and difference > LARGEST_DIFFERENCE:
                raise ValueError(f"scores differ from torch's by {difference:.2g}")
            note = f"{difference:.0e}; {order_agreement(found, exact):.2f}"
            add(f"here, {kind}, {precision}", ours, note, profile=profile, rescore=rescore)
    timings = dict(zip(calls, alternate(list(calls.values()), ROUNDS, SECONDS), strict=True))
    heads = " | ".join(f"vs {name.rpartition(', ')[2]}" for name in peers)
    print(f"| | ms for {CANDIDATES} | difference; top 10 | {heads} |")
    print("|---|--:|--:|" + "--:|" * len(peers))
    content = []
    for name, timing in timings.items():
        ratios = [timing.times_faster_than(timings[peer]) for peer in peers]
        ms = timing.median_ms / len(requests)
        cells = " | ".join(f"{ratio:.2f}x" for ratio in ratios)
        print(f"| {name} | {ms:.0f} | {notes[name]} | {cells} |")
        versus = dict(zip(peers, ratios, strict=True))
        content.append({"name": name, "ms": ms, "note": notes[name], "times_faster": versus})
    if options.json:
        with atomic_file(options.json) as file:
            file.write(json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    main()
