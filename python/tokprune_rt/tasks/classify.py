"""Sequence classification and regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tokprune_rt.inputs import texts_or_pairs
from tokprune_rt.outputs import FloatArray
from tokprune_rt.progress import progress
from tokprune_rt.tasks.numeric import Floats, sigmoid, softmax

if TYPE_CHECKING:
    from tokprune_rt.model import Model
    from tokprune_rt.tokenizer import TextOrPair


def sequence_logits(
    model: Model,
    items: Sequence[TextOrPair],
    *,
    profile: str | None,
    batch_size: int,
    truncate: bool,
    show_progress_bar: bool = False,
) -> FloatArray:
    """Logits float32 [n, labels] of texts or pairs, in the order given."""
    sequences = model.tokenizer.tokenize(items, truncate=truncate)
    logits = np.empty((len(items), len(model.labels)), dtype=np.float32)
    runs = model.engine.run(sequences, "logits", profile=profile, batch_size=batch_size)
    with progress(len(items), show_progress_bar) as advance:
        for indices, result, _ in runs:
            logits[indices] = result["logits"]
            advance(len(indices))
    return logits


def label_scores(model: Model, logits: Floats) -> Floats:
    """Scores of logits [n, labels]: as is for regression, sigmoid for one label or several at once,
    else softmax."""
    problem = model.config.problem_type
    if problem == "regression":
        return logits
    if problem == "multi_label_classification" or logits.shape[-1] == 1:
        return sigmoid(logits)
    return softmax(logits)


def predict(
    model: Model,
    inputs: object,
    *,
    profile: str | None = None,
    top_k: int | Literal["best"] | None = "best",
    raw_scores: bool = False,
    batch_size: int = 32,
    truncate: bool = True,
    show_progress_bar: bool = False,
) -> Any:
    """Classify texts or pairs of texts.

    Args:
        model: a sequence-classification model.
        inputs: a text, a pair (tuple of two texts, or ``{"text": .., "text_pair": ..}``), or a
            collection of those; within a collection a pair may also be a list.
        profile: the policy's profile.
        top_k: how many labels to return per input, best first; None for all. Without it the best
            label.
        raw_scores: return logits instead.
        batch_size: a batch holds at most ``128 * batch_size`` tokens.
        truncate: False refuses over-long inputs instead of cutting them.
        show_progress_bar: show progress, when tqdm is installed.

    Returns:
        ``[{"label", "score"}, ...]``, one per input. With ``top_k``: a list of them per input (the
        list itself for a single input). With ``raw_scores``: float32 [n, labels], [labels] for a
        single input.

    Raises:
        ValueError: the model has no such head, unknown profile, over-long input with
            ``truncate=False``.
        TypeError: something is no text; names its index.
    """
    model.require_task("sequence-classification", "predict")
    if top_k not in ("best", None) and (
        isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1
    ):
        raise ValueError(f"top_k must be a positive int or None, got {top_k!r}")
    items, single = texts_or_pairs(inputs, "texts")
    logits = sequence_logits(
        model,
        items,
        profile=profile,
        batch_size=batch_size,
        truncate=truncate,
        show_progress_bar=show_progress_bar,
    )
    if raw_scores:
        return logits[0] if single else logits
    count = 1 if top_k == "best" else top_k
    ranked = [ranked_labels(model.labels, row, count) for row in label_scores(model, logits)]
    if top_k == "best":
        return [row[0] for row in ranked]
    return ranked[0] if single else ranked


def ranked_labels(labels: Sequence[str], scores: Floats, count: int | None) -> list[dict[str, Any]]:
    """``{"label", "score"}`` of one input's scores [labels], best first, at most ``count``."""
    order = np.argsort(-scores, kind="stable")[:count]
    return [{"label": labels[i], "score": float(scores[i])} for i in order]
