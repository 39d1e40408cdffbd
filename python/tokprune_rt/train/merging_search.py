"""A merging policy for a budget of multiply-adds, by calibration's search on some texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokprune_rt.calibration.families import FAMILIES, Family, Shares
from tokprune_rt.calibration.judge import VectorJudge
from tokprune_rt.calibration.passes import Passes
from tokprune_rt.calibration.search import Evaluate, Point, search, uniform_loss
from tokprune_rt.model import Model
from tokprune_rt.tokenizer import Tokens

# Tokens below which merging saves hardly any time.
_SHORT = 24
# Of calibration's kinds of policies, those that distillation chooses among.
_KINDS = ("merge", "merge-weighed")


def merging_policy(
    model: Model, tokens: list[Tokens], target: float, say: Callable[[str], object]
) -> dict[str, Any]:
    """A policy document: merging of similar hidden states, each layer's share where it costs the
    least, and a profile "light" half-way between the target and the dense model.

    Args:
        model: an embedding model.
        tokens: of texts to search with.
        target: multiply-adds, of the dense model's.
        say: receives lines of progress.

    Raises:
        ValueError: a target that merging does not reach.
    """
    if not 0 < target < 1:
        raise ValueError(f"target: found {target}; allowed: above 0, below 1")
    passes = Passes(model, tokens)
    dense, all_macs = passes.run(None)
    judge = VectorJudge(dense)
    options: dict[str, Any] = {"protect_first": True, "protect_last": True}
    options |= {"skip_below": _SHORT, "name": "distilled"}

    def evaluator(family: Family) -> Evaluate:
        def evaluate(shares: Shares) -> Point:
            found, macs = passes.run(passes.plan(family.document(shares, None, options)))
            return Point(shares, macs / all_macs, judge.loss(found))

        return evaluate

    say(f"searching where to merge for {target:.0%} of the multiply-adds")
    layers = model.config.layers
    family = min(
        (FAMILIES[name] for name in _KINDS),
        key=lambda family: uniform_loss(evaluator(family), layers, target),
    )
    evaluate = evaluator(family)
    path = search(evaluate, layers, lambda point: point.macs <= target)
    if path[-1].macs > target:
        raise ValueError(f"target: found {target}; merging reaches {path[-1].macs:.2f} here")
    chosen = _between(evaluate, path[-2], path[-1], target)
    say(f"{chosen.macs:.1%} of the multiply-adds, cosine {1 - chosen.loss:.4f} untrained")
    light = min(path, key=lambda point: abs(point.macs - (1 + target) / 2))
    return family.document(chosen.shares, {"light": light.shares}, options)


def _between(evaluate: Evaluate, over: Point, under: Point, target: float) -> Point:
    """The point on the way from ``over`` to ``under`` that is just within the target."""
    found, low, high = under, 0.0, 1.0
    for _ in range(4):
        middle = (low + high) / 2
        pairs = zip(over.shares, under.shares, strict=True)
        tried = evaluate(tuple(round(a + middle * (b - a), 4) for a, b in pairs))
        if tried.macs <= target:
            found, high = tried, middle
        else:
            low = middle
    return found
