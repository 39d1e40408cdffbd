"""What deciding costs when nothing is dropped, and what a short text costs beside the encoder.

    python benchmarks/overheads.py --precision fp32 --precision int8

*Deciding* is a forward pass with a policy that scores every token in every layer and keeps all,
against the dense pass: scores, selection and the probabilities kept for them, without any saving.
*Text to vector* is encode() of one short text against the compiled forward pass of its token ids:
tokenizer, Python and the waking of threads. Calls take turns; medians of the differences of
neighbours.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

import tokprune_rt
from tokprune_rt import Model
from tokprune_rt.bench.models import REAL_MODEL, SHAPES, model_folder
from tokprune_rt.bench.timing import alternate

TEXT = "Tokens leave early and time is saved."
SHORT_CALLS = 2000


def keep_all(layers: int) -> dict[str, object]:
    """A threshold below every score: the engine cannot know that nothing will be dropped."""
    return {
        "format": "token-policy",
        "version": 1,
        "layers": layers,
        "scores": {"received": {"kind": "attn_col"}},
        "steps": [
            {
                "layers": list(range(layers)),
                "site": "mid",
                "score": "received",
                "select": {"kind": "threshold", "theta": 1e-30},
                "action": {"kind": "drop"},
            }
        ],
    }


def deciding(model: Model, ids: list[NDArray[np.int32]], rounds: int) -> float:
    """Share of a forward pass that goes into decisions."""

    def run(profile: str | None) -> None:
        kept = model.forward(ids, profile=profile).stats.kept_per_layer
        assert min(kept) == sum(len(item) for item in ids)

    run(None)
    run("off")
    deciding, dense = alternate([lambda: run(None), lambda: run("off")], rounds, 60.0)
    return 1 - 1 / dense.times_faster_than(deciding)


def text_to_vector(precision: str, threads: int) -> tuple[float, float]:
    """Milliseconds of encode() beyond the compiled pass, and of that pass."""
    model = tokprune_rt.load(REAL_MODEL, policy="off", precision=precision, threads=threads)
    (tokens,) = model.tokenizer.tokenize([TEXT])
    bounds = np.array([0, len(tokens)], np.int32)
    forward = model.engine.encoder.forward
    extra, core = [], []
    for _ in range(SHORT_CALLS):
        begin = perf_counter()
        forward(tokens.ids, bounds, token_type_ids=tokens.type_ids, want="pooled", normalize=True)
        middle = perf_counter()
        model.encode(TEXT)
        core.append(middle - begin)
        extra.append(perf_counter() - middle - core[-1])
    return 1e3 * float(np.median(extra)), 1e3 * float(np.median(core))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", action="append", help="repeatable; default: auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    for precision in options.precision or ["auto"]:
        for shape in SHAPES.values():
            policy = keep_all(shape.layers)
            model = tokprune_rt.load(
                model_folder(shape), policy=policy, precision=precision, threads=options.threads
            )
            for batch, length in ((8, 128), (32, 32)):
                ids = list(rng.integers(1000, 2000, (batch, length), dtype=np.int32))
                share = deciding(model, ids, options.rounds)
                print(f"{precision} {shape.label} {batch}x{length}: deciding {share:.1%} of a pass")
        extra, core = text_to_vector(precision, options.threads)
        print(f"{precision} text to vector: {extra:.3f} ms beside the {core:.3f} ms of the encoder")


if __name__ == "__main__":
    main()
