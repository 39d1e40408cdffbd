"""What reduced precision costs in quality: scores of real tasks, and distances to fp32.

    python benchmarks/quality.py --data FOLDER --precisions fp32,bf16,int8 --json result.json

FOLDER holds glue/STS-B, glue/SST-2, sick and vaswani. The embeddings are those of all-MiniLM-L6-v2;
--classifier takes the folder that `finetune.py` wrote. fp32 always runs, because everything is
compared with it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_data import Labelled, Pairs, Retrieval, sick, sst2, sts_b, vaswani
from scipy.stats import spearmanr

import tokprune_rt
from tokprune_rt import Model
from tokprune_rt.policy import preset

MODEL = "all-MiniLM-L6-v2"
LAYERS, SEPARATOR = 6, 102
TASKS = ("sts-b", "sick", "vaswani", "sst-2")
POLICIES: dict[str, dict[str, Any]] = {
    "quantile": {"q": 0.2, "protect_token_ids": [SEPARATOR]},
    "spatten": {"final_keep": 0.5, "protect_token_ids": [SEPARATOR]},
}
# Texts in one call when decisions are traced.
_BATCH = 32

Vectors = NDArray[np.float32]
Kept = list[list[NDArray[np.int32]]]


@dataclass
class Outputs:
    """What a precision computed, to be compared with fp32's."""

    vectors: dict[str, Vectors] = field(default_factory=dict)
    logits: Vectors | None = None
    kept: dict[str, Kept] = field(default_factory=dict)


@dataclass
class Row:
    """One precision.

    Attributes:
        effective: what it ran as.
        scores: task -> its score in points, the higher the better.
        min_cosine, max_difference: of all unit-length embeddings to fp32's.
        agreement, max_logit_difference: of the classifier to fp32's.
        flips: policy -> share of the decisions to keep or drop a token that differ from fp32's.
        texts_flipped: policy -> share of the texts with such a decision.
    """

    precision: str
    effective: str
    isa: str
    scores: dict[str, float] = field(default_factory=dict)
    min_cosine: float | None = None
    max_difference: float | None = None
    agreement: float | None = None
    max_logit_difference: float | None = None
    flips: dict[str, float] = field(default_factory=dict)
    texts_flipped: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The tasks that are wanted."""

    pairs: dict[str, Pairs]
    retrieval: Retrieval | None
    labelled: Labelled | None


def embed(model: Model, texts: Sequence[str], profile: str | None = "off") -> Vectors:
    """Unit-length embeddings, float32 [n, d]."""
    return model.encode(texts, normalize_embeddings=True, profile=profile)


def correlation(first: Vectors, second: Vectors, scores: NDArray[np.float64]) -> float:
    """Spearman's correlation of cosines with the scores, in points."""
    cosines = (first.astype(np.float64) * second).sum(axis=1)
    return 100 * float(spearmanr(cosines, scores).statistic)


def ndcg(documents: Vectors, queries: Vectors, data: Retrieval, depth: int = 10) -> float:
    """Mean nDCG over the queries that have judgements, gain = grade, in points."""
    names = np.array(list(data.documents))
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    found = []
    for name, vector in zip(data.queries, queries, strict=True):
        relevant = data.relevance.get(name)
        if not relevant:
            continue
        best = np.argsort(-(documents @ vector), kind="stable")[:depth]
        gains = np.array([relevant.get(document, 0) for document in names[best]])
        ideal = np.sort(list(relevant.values()))[::-1][:depth]
        found.append((gains * discounts).sum() / (ideal * discounts[: len(ideal)]).sum())
    return 100 * float(np.mean(found))


def traced(model: Model, texts: Sequence[str]) -> Kept:
    """The original positions alive at the start and after each layer: [text][1 + layer]."""
    found: Kept = []
    ids = [item.ids for item in model.tokenizer.tokenize(texts)]
    for place in range(0, len(ids), _BATCH):
        part = ids[place : place + _BATCH]
        trace = model.forward(part, trace=True).trace
        if trace is None:
            raise RuntimeError("the forward pass returned no trace")
        starts = [np.arange(len(item), dtype=np.int32) for item in part]
        found += [[start, *(layer[i] for layer in trace.kept)] for i, start in enumerate(starts)]
    return found


def flipped(expected: Kept, found: Kept) -> tuple[float, float]:
    """Share of the decisions that differ, and of the texts that have one.

    A decision is a layer's about a token that is alive before it in either run. Layers at which
    neither run drops anything decide nothing.
    """
    decisions = flips = texts = 0
    for own, other in zip(expected, found, strict=True):
        before, differs = [own[0], other[0]], False
        for after in zip(own[1:], other[1:], strict=True):
            if any(len(a) < len(b) for a, b in zip(after, before, strict=True)):
                decisions += len(np.union1d(*before))
                different = len(np.setxor1d(*after, assume_unique=True))
                flips += different
                differs = differs or different > 0
            before = list(after)
        texts += differs
    return flips / max(1, decisions), texts / max(1, len(expected))


def run(
    precision: str, data: Data, classifier: Path | None, options: dict[str, Any]
) -> tuple[Row, Outputs]:
    """Everything at one precision."""
    outputs = Outputs()
    policy = preset("quantile", layers=LAYERS, **POLICIES["quantile"])
    model = tokprune_rt.load(MODEL, policy=policy, precision=precision, **options)
    row = Row(precision, model.precision, model.isa)
    for name, pairs in data.pairs.items():
        for profile, title in (("off", name), (None, f"{name} pruned")):
            first, second = (embed(model, side, profile) for side in (pairs.first, pairs.second))
            row.scores[title] = correlation(first, second, pairs.scores)
            if profile == "off":
                outputs.vectors[name] = np.concatenate([first, second])
    if data.retrieval is not None:
        documents = embed(model, list(data.retrieval.documents.values()))
        queries = embed(model, list(data.retrieval.queries.values()))
        row.scores["vaswani"] = ndcg(documents, queries, data.retrieval)
        outputs.vectors["vaswani"] = np.concatenate([documents, queries])
    if data.pairs:
        texts = next(iter(data.pairs.values())).first
        for name, parameters in POLICIES.items():
            document = preset(name, layers=LAYERS, **parameters)
            model = tokprune_rt.load(MODEL, policy=document, precision=precision, **options)
            outputs.kept[name] = traced(model, texts)
    if data.labelled is not None and classifier is not None:
        model = tokprune_rt.load(classifier, precision=precision, **options)
        outputs.logits = model.predict(data.labelled.texts, raw_scores=True)
        right = outputs.logits.argmax(axis=1) == data.labelled.labels
        row.scores["sst-2"] = 100 * float(right.mean())
    return row, outputs


def compare(row: Row, own: Outputs, exact: Outputs) -> None:
    """Fill in the distances to fp32."""
    if own.vectors:
        pairs = [(own.vectors[name], exact.vectors[name]) for name in own.vectors]
        row.max_difference = max(float(np.abs(a - b).max()) for a, b in pairs)
        row.min_cosine = min(float((a.astype(np.float64) * b).sum(axis=1).min()) for a, b in pairs)
    if own.logits is not None and exact.logits is not None:
        row.max_logit_difference = float(np.abs(own.logits - exact.logits).max())
        same = own.logits.argmax(axis=1) == exact.logits.argmax(axis=1)
        row.agreement = 100 * float(same.mean())
    for name, kept in own.kept.items():
        row.flips[name], row.texts_flipped[name] = flipped(exact.kept[name], kept)


def markdown(rows: Sequence[Row]) -> str:
    """One line for each precision; scores in points, with their change against fp32."""
    exact = rows[0]
    titles = ["precision", *exact.scores, "least cosine", "largest difference"]
    titles += ["classifier agrees", "largest logit difference"]
    titles += [f"decisions flipped, {name}" for name in exact.flips]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
    for row in rows:
        fallback = "" if row.effective == row.precision else f" (ran as {row.effective})"
        cells = [row.precision + fallback]
        for name, score in row.scores.items():
            change = "" if row is exact else f" ({score - exact.scores[name]:+.3f})"
            cells.append(f"{score:.3f}{change}")
        cells.append("" if row.min_cosine is None else f"{row.min_cosine:.6f}")
        cells.append("" if row.max_difference is None else f"{row.max_difference:.1e}")
        cells.append("" if row.agreement is None else f"{row.agreement:.2f}%")
        logit = row.max_logit_difference
        cells.append("" if logit is None else f"{logit:.1e}")
        cells += [
            f"{100 * share:.3f}% ({100 * row.texts_flipped[name]:.1f}% of texts)"
            for name, share in row.flips.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read(folder: Path, tasks: Sequence[str], classifier: Path | None, limit: int | None) -> Data:
    """The wanted tasks, each cut to ``limit`` items."""
    unknown = set(tasks) - set(TASKS)
    if unknown:
        raise SystemExit(f"unknown task {unknown.pop()!r}; there are {', '.join(TASKS)}")
    pairs = {}
    for name, reader in (("sts-b", sts_b), ("sick", sick)):
        if name in tasks:
            found = reader(folder)
            pairs[name] = Pairs(found.first[:limit], found.second[:limit], found.scores[:limit])
    retrieval = vaswani(folder) if "vaswani" in tasks else None
    if retrieval is not None and limit is not None:
        some = dict(list(retrieval.documents.items())[: 20 * limit])
        retrieval = Retrieval(some, retrieval.queries, retrieval.relevance)
    labelled = None
    if "sst-2" in tasks and classifier is not None:
        whole = sst2(folder, "dev")
        labelled = Labelled(whole.texts[:limit], whole.labels[:limit])
    return Data(pairs, retrieval, labelled)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--precisions", default="fp32,bf16x3,bf16,int8", metavar="A,B")
    parser.add_argument("--tasks", default=",".join(TASKS), metavar="A,B")
    parser.add_argument("--classifier", type=Path, default=None, metavar="DIR")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parser.add_argument("--limit", type=int, default=None, help="items of each task, for a try")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--isa", default=None)
    arguments = parser.parse_args()
    options = {"threads": arguments.threads, "isa": arguments.isa}
    data = read(arguments.data, arguments.tasks.split(","), arguments.classifier, arguments.limit)
    exact: Outputs | None = None
    rows: list[Row] = []
    for precision in dict.fromkeys(["fp32", *arguments.precisions.split(",")]):
        row, outputs = run(precision, data, arguments.classifier, options)
        exact = exact or outputs
        compare(row, outputs, exact)
        rows.append(row)
    print(markdown(rows))
    if arguments.json is not None:
        document = {
            "format": "tokprune-quality",
            "model": MODEL,
            "policies": POLICIES,
            "limit": arguments.limit,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
