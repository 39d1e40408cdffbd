"""Scoring query-document pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.inputs import text_list
from tokprune_rt.outputs import FloatArray
from tokprune_rt.policy import OFF
from tokprune_rt.tasks.classify import sequence_logits
from tokprune_rt.tasks.numeric import Floats, sigmoid
from tokprune_rt.tokenizer import TextOrPair, check_text

if TYPE_CHECKING:
    from tokprune_rt.model import Model


def _identity(x: Floats) -> Floats:
    return x


def _relu(x: Floats) -> Floats:
    return np.maximum(x, 0)


_ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "Sigmoid": sigmoid,
    "Identity": _identity,
    "Tanh": np.tanh,
    "ReLU": _relu,
}


def pair_activation(model: Model) -> Callable[[Floats], Floats]:
    """What turns a pair's logit into its score: what the folder says, else the sigmoid."""
    stated = model.setup.pair_activation
    if stated is None:
        return sigmoid
    found = _ACTIVATIONS.get(stated.rpartition(".")[2])
    if found is None:
        raise ValueError(
            f"{model.name}: the score activation {stated!r} is not supported; supported are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return found


def check_count(value: object, name: str) -> None:
    """ValueError unless ``value`` is a positive int or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a positive int or None, got {value!r}")


def best(scores: FloatArray, count: int) -> NDArray[np.int64]:
    """Places of the best ``count``, ascending; of equal scores the first ones."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def cascade(
    scores: FloatArray, rescore: int | None, exact: Callable[[NDArray[np.int64]], FloatArray]
) -> tuple[NDArray[np.int64], FloatArray]:
    """Places, best first, and the score of each place.

    The best ``rescore`` are scored again by ``exact``, which is given their places in ascending
    order, and come first whatever the others' scores. Equal scores are in the order given.
    """
    order = np.argsort(-scores, kind="stable")
    if rescore is None or len(order) == 0:
        return order, scores
    head = best(scores, rescore)
    again = exact(head)
    order[:rescore] = head[np.argsort(-again, kind="stable")]
    scores = scores.copy()
    scores[head] = again
    return order, scores


def rank(
    model: Model,
    query: str,
    docs: object,
    *,
    profile: str | None = None,
    top_k: int | None = None,
    rescore: int | None = None,
    return_documents: bool = False,
    batch_size: int = 32,
    truncate: bool = True,
    show_progress_bar: bool = False,
) -> list[dict[str, Any]]:
    """Order documents by their relevance to a query.

    Args:
        model: a sequence-classification model with one label (a cross-encoder).
        query: the query.
        docs: a collection of texts.
        profile: the policy's profile.
        top_k: how many to return; default all.
        rescore: score so many of the best again, without pruning. They come first, in the order and
            with the scores of the dense model; the others follow as the profile scored them, even
            those with a higher score. Default: none.
        return_documents: add the document's ``text``.
        batch_size: a batch holds at most ``128 * batch_size`` tokens.
        truncate: False refuses over-long pairs instead of cutting them.
        show_progress_bar: show progress, when tqdm is installed.

    Returns:
        ``[{"corpus_id", "score", "text"?}, ...]``, best first, equal scores in the order given.

    Raises:
        ValueError: the model has no such head, unknown profile, over-long pair with
            ``truncate=False``.
        TypeError: something is no text; names its index.
    """
    model.require_task("sequence-classification", "rank")
    if len(model.labels) != 1:
        raise ValueError(
            f"rank needs a model with one label, {model.name} has {len(model.labels)}; use predict "
            "with pairs"
        )
    check_count(top_k, "top_k")
    check_count(rescore, "rescore")
    activation = pair_activation(model)
    first = check_text(query, "query")
    if isinstance(docs, str):
        raise TypeError("docs must be a list of str, got str")
    texts = text_list(docs, "docs")
    pairs: list[TextOrPair] = [(first, text) for text in texts]

    def score(some: list[TextOrPair], profile: str | None, show: bool) -> FloatArray:
        logits = sequence_logits(
            model,
            some,
            profile=profile,
            batch_size=batch_size,
            truncate=truncate,
            show_progress_bar=show,
        )
        found: FloatArray = activation(logits[:, 0])
        return found

    dense = model.policy is None or profile == OFF
    order, scores = cascade(
        score(pairs, profile, show_progress_bar),
        None if dense else rescore,
        lambda places: score([pairs[place] for place in places], OFF, False),
    )
    results: list[dict[str, Any]] = []
    for index in order[:top_k]:
        entry: dict[str, Any] = {"corpus_id": int(index), "score": float(scores[index])}
        if return_documents:
            entry["text"] = texts[index]
        results.append(entry)
    return results
