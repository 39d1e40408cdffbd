"""Where merging and dropping might fail: crafted texts, other domains, words that matter.

    python benchmarks/embedding_robustness.py --data FOLDER --json robustness.json
    python benchmarks/embedding_robustness.py --data FOLDER --methods "merge; drop" \
        --policy calibrated=policy.json

The methods' shares are those at which the multiply-adds fall by --level on training texts of 20
Newsgroups, as in `embedding_quality.py`. FOLDER holds 20newsgroups, vaswani, trecqa, glue/SST-2 and
wnut17.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from embedding_policies import LAYERS, METHODS, embed, plan_of, strength_for
from embedding_quality import sample_of
from embedding_words import CLASSES, fates, negation_felt
from pruning_sets import wnut
from quality import MODEL
from quality_data import newsgroups, sst2, vaswani

import tokprune_rt
from tokprune_rt import Model, _core
from tokprune_rt.files import atomic_file
from tokprune_rt.policy import preset
from tokprune_rt.tokenizer import Tokens
from tokprune_rt.train import Sentences

LENGTH = 256
PARTS = ("crafted", "domains", "words")
METHODS_SHOWN = "random drop; drop; quantile; pitome; merge"
# Ids of whole words in the vocabulary of BERT (uncased), after its unused ids, signs and letters.
_WORDS = range(2000, 12000)
_TEXTS, _DOMAIN_TEXTS = 32, 500


def crafted(real: Sequence[Tokens]) -> dict[str, list[Tokens]]:
    """Texts of 256 tokens made to defeat a policy, beside real ones."""
    rng = np.random.default_rng(0)

    def text(body: Sequence[int] | np.ndarray) -> Tokens:
        ids = np.array([101, *body[: LENGTH - 2], 102], np.int32)
        return Tokens(ids, np.zeros_like(ids), np.zeros_like(ids))

    def different() -> np.ndarray:
        return rng.choice(np.array(_WORDS), LENGTH, replace=False)

    def alternating() -> np.ndarray:
        """The same word at every other place: like tokens are never candidates for each other."""
        body = different()
        body[::2] = body[0]
        return body

    words = {
        "all tokens different": different,
        "one word repeated": lambda: np.full(LENGTH, rng.choice(np.array(_WORDS))),
        "one word at every other place": alternating,
    }
    whole = [item for item in real if len(item) == LENGTH][:_TEXTS]
    return {"20 Newsgroups": whole} | {
        name: [text(make()) for _ in range(_TEXTS)] for name, make in words.items()
    }


def by_theta(theta: float, **limits: Any) -> dict[str, Any]:
    """Merging of everything more similar than a threshold: work depends on the text."""
    document = METHODS["merge"](0.5)
    (step,) = document["steps"]
    select = {"kind": "bipartite", "theta": theta, **limits}
    return {**document, "steps": [{**step, "select": select}]}


def theta_policies(model: Model, sample: list[Tokens], level: float) -> dict[str, Any]:
    """Thresholds that cost what the level says on real texts, without and with a cap."""
    merging = strength_for(model, sample, by_theta, level)
    caps = [round(LENGTH * (1 - (i + 1) / (2 * LAYERS))) for i in range(LAYERS)]

    def dropping(last: float, **limits: int) -> dict[str, Any]:
        options = {"norm": "unprotected", "protect_last": True, **limits}
        return preset("ltp", layers=LAYERS, final_threshold=last, **options)

    kept = strength_for(model, sample, lambda share: dropping(2 * (1 - share)), level)
    found: dict[str, Any] = {}
    if merging is not None:
        found[f"merge above {merging:.2f}"] = by_theta(merging)
        found[f"the same, max_tokens {caps[0]} to {caps[-1]}"] = by_theta(merging, max_tokens=caps)
    if kept is not None:
        last, cap = 2 * (1 - kept), round(0.75 * LENGTH)
        found[f"drop below {last:.2f} at the last layer (ltp)"] = dropping(last)
        found[f"the same, max_tokens {cap}"] = dropping(last, max_tokens=cap)
    return found


def domains(folder: Path) -> dict[str, list[str]]:
    """Texts of other kinds than those that chose the strength."""
    with (folder / "trecqa" / "dev.csv").open(encoding="utf-8", newline="") as file:
        answers = [row["atext"] for row in csv.DictReader(file)]
    found = {
        "20 Newsgroups": newsgroups(folder, "test", _DOMAIN_TEXTS, bodies=True).texts,
        "vaswani": list(vaswani(folder).documents.values()),
        "trecqa": answers,
        "SST-2": sst2(folder, "dev").texts,
    }
    rng = np.random.default_rng(0)
    return {
        name: [texts[i] for i in rng.permutation(len(texts))[:_DOMAIN_TEXTS]]
        for name, texts in found.items()
    }


def distances(
    model: Model, plans: Mapping[str, _core.Plan | None], groups: Mapping[str, list[Tokens]]
) -> dict[str, dict[str, list[float]]]:
    """Policy -> group -> factor by which the multiply-adds fall, and of the cosine to dense the
    mean, the 5th percentile and the least."""
    dense = {name: embed(model, tokens, None).vectors for name, tokens in groups.items()}
    found: dict[str, dict[str, list[float]]] = {}
    for policy, plan in plans.items():
        found[policy] = {}
        for name, tokens in groups.items():
            own = embed(model, tokens, plan)
            cosines = (own.vectors.astype(np.float64) * dense[name]).sum(axis=1)
            values = [1 / own.macs, cosines.mean(), np.percentile(cosines, 5), cosines.min()]
            found[policy][name] = [float(value) for value in values]
    return found


def words_table(
    model: Model, plans: Mapping[str, _core.Plan | None], folder: Path
) -> dict[str, dict[str, Any]]:
    """Policy -> what becomes of classes of words on WNUT 17 and, but for entities, SST-2."""
    texts: list[tuple[list[str], list[str]]] = []
    for name in ("emerging.dev.conll", "emerging.test.annotated"):
        data = wnut(name)(folder)
        assert isinstance(data, Sentences)
        texts += zip(data.words, data.tags, strict=True)
    reviews: list[tuple[list[str], list[str]]] = [
        (text.split(), []) for text in sst2(folder, "dev").texts
    ]
    found: dict[str, dict[str, Any]] = {}
    for policy, plan in {"dense": None, **plans}.items():
        both = [fates(model, plan, part) for part in (texts, reviews)]
        counts = {
            name: [
                sum(getattr(item[name], part) for item in both)
                for part in ("count", "gone", "leading")
            ]
            for name in CLASSES
        }
        found[policy] = {
            "counts": counts,
            "negation felt": negation_felt(model, plan, reviews),
        }
    return found


def markdown_distances(title: str, found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    groups = list(next(iter(found.values())))
    lines = ["| " + " | ".join([title, *groups]) + " |", "|---|" + "--:|" * len(groups)]
    for policy, cells in found.items():
        shown = [f"{c[0]:.2f}x  {c[1]:.3f} / {c[2]:.3f}" for c in cells.values()]
        lines.append("| " + " | ".join([policy, *shown]) + " |")
    return "\n".join(lines) + "\n"


def markdown_words(found: Mapping[str, Mapping[str, Any]]) -> str:
    titles = ["left / alone", *CLASSES, "negation felt"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
    for policy, item in found.items():
        cells = [policy]
        for count, gone, leading in (item["counts"][name] for name in CLASSES):
            cells.append(f"{1 - gone / count:.0%} / {1 - (gone + leading) / count:.0%}")
        lines.append("| " + " | ".join([*cells, f"{item['negation felt']:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--methods", default=METHODS_SHOWN, metavar="'A; B'")
    parser.add_argument("--level", type=float, default=1.5, metavar="X")
    parser.add_argument("--policy", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    model = tokprune_rt.load(MODEL, policy="off", precision="fp32", threads=options.threads)
    sample = sample_of(options.data, model, 1000)
    sources: dict[str, Any] = {}
    for name in filter(None, (part.strip() for part in options.methods.split(";"))):
        kept = strength_for(model, sample, METHODS[name], options.level)
        if kept is not None:
            sources[f"{name}, {kept:.3f} kept"] = METHODS[name](kept)
    for item in options.policy:
        name, _, source = item.partition("=")
        sources[name] = source
    plans = {name: plan_of(model, source) for name, source in sources.items()}
    texts = domains(options.data)
    groups = {name: model.tokenizer.tokenize(part) for name, part in texts.items()}
    result: dict[str, Any] = {"format": "tokprune-embedding-robustness", "level": options.level}
    if "crafted" in options.part:
        by_text = theta_policies(model, sample, options.level)
        thresholds = {name: plan_of(model, source) for name, source in by_text.items()}
        made = crafted(groups["20 Newsgroups"])
        result["crafted"] = distances(model, {**plans, **thresholds}, made)
        print(markdown_distances("crafted texts of 256 tokens", result["crafted"]), flush=True)
    if "domains" in options.part:
        result["domains"] = distances(model, plans, groups)
        result["tokens"] = {n: float(np.mean([len(t) for t in g])) for n, g in groups.items()}
        print(markdown_distances("domain", result["domains"]))
        tokens = ", ".join(f"{name} {mean:.0f}" for name, mean in result["tokens"].items())
        print(f"mean tokens: {tokens}\n", flush=True)
    if "words" in options.part:
        result["words"] = words_table(model, plans, options.data)
        print(markdown_words(result["words"]))
    if options.json is not None:
        with atomic_file(options.json) as file:
            file.write(json.dumps(result, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
