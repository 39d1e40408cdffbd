"""Extractive question answering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokprune_rt.outputs import FloatArray
from tokprune_rt.tasks.numeric import Floats, softmax
from tokprune_rt.tasks.tag import token_logits
from tokprune_rt.tokenizer import Tokenizer, Window, check_text

if TYPE_CHECKING:
    from tokprune_rt.model import Model

DEFAULT_MAX_SEQ_LEN = 384
DEFAULT_STRIDE = 128
DEFAULT_ANSWER_LEN = 15


def answer(
    model: Model,
    question: object,
    context: object,
    *,
    profile: str | None = None,
    top_k: int = 1,
    max_answer_len: int = DEFAULT_ANSWER_LEN,
    max_seq_len: int | None = None,
    doc_stride: int | None = None,
    handle_impossible_answer: bool = False,
    batch_size: int = 32,
) -> Any:
    """Find the answer to a question in a context of any length.

    The context is read in overlapping windows; within each window start and end are two softmaxes
    over its context, and a span's score is the product of its two probabilities.

    Args:
        model: a question-answering model.
        question: the question.
        context: the text that holds the answer.
        profile: the policy's profile.
        top_k: how many answers to return.
        max_answer_len: longest answer in tokens.
        max_seq_len: tokens per window, question included; default 384, at most the model's limit.
        doc_stride: tokens that neighbouring windows share, fewer than a window has and at most
            three quarters of what the question leaves of it; default 128, or half a window where
            that is less.
        handle_impossible_answer: let the empty answer compete.
        batch_size: a batch holds at most ``128 * batch_size`` tokens.

    Returns:
        ``{"score", "start", "end", "answer"}`` (character positions, whole words); with ``top_k`` >
        1 a list of them, best first.

    Raises:
        ValueError: the model has no such head, empty question or context, a question that fills the
            window, or a bad number.
        TypeError: question or context is no text.
    """
    cut, text = context_windows(
        model,
        question,
        context,
        top_k=top_k,
        max_answer_len=max_answer_len,
        max_seq_len=max_seq_len,
        doc_stride=doc_stride,
    )
    windows = list(cut)
    sequences = [window.tokens for window in windows]
    logits = token_logits(model, sequences, profile=profile, batch_size=batch_size)
    best = best_answers(windows, logits, text, top_k, max_answer_len, handle_impossible_answer)
    return best if top_k > 1 else best[0]


def context_windows(
    model: Model,
    question: object,
    context: object,
    *,
    top_k: int,
    max_answer_len: int,
    max_seq_len: int | None,
    doc_stride: int | None,
    most: int | None = None,
) -> tuple[Iterator[Window], str]:
    """The windows that `answer` reads and the context's text; arguments and errors are its own,
    and InputTooLongError when the windows together have more than ``most`` tokens."""
    model.require_task("question-answering", "answer")
    asked, text = check_text(question, "question"), check_text(context, "context")
    for name, value in (("question", asked), ("context", text)):
        if not value.strip():
            raise ValueError(f"{name} is empty")
    for name, number in (("top_k", top_k), ("max_answer_len", max_answer_len)):
        if not _is_int(number, 1):
            raise ValueError(f"{name} must be a positive int, got {number!r}")
    limit, stride = _sizes(model.tokenizer, max_seq_len, doc_stride)
    windows = model.tokenizer.windows(asked, text, max_length=limit, stride=stride, most=most)
    return windows, text


def windows_of(tokenizer: Tokenizer, question: str, context: str) -> list[Window]:
    """The windows in which `answer` reads a context unless told otherwise; errors as there."""
    limit, stride = _sizes(tokenizer, None, None)
    return list(tokenizer.windows(question, context, max_length=limit, stride=stride))


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _sizes(
    tokenizer: Tokenizer, max_seq_len: int | None, doc_stride: int | None
) -> tuple[int, int]:
    """Tokens of a window, and those that neighbours share."""
    if max_seq_len is not None and not _is_int(max_seq_len, 1):
        raise ValueError(f"max_seq_len must be a positive int or None, got {max_seq_len!r}")
    given = DEFAULT_MAX_SEQ_LEN if max_seq_len is None else max_seq_len
    limit = min(given, tokenizer.max_length)
    if doc_stride is None:
        return limit, min(DEFAULT_STRIDE, limit // 2)
    if not _is_int(doc_stride, 0) or doc_stride >= limit:
        raise ValueError(
            f"doc_stride must be an int from 0 to {limit - 1}, as a window has {limit} tokens, or "
            f"None, got {doc_stride!r}"
        )
    return limit, doc_stride


def best_answers(
    windows: Sequence[Window],
    logits: Sequence[FloatArray],
    text: str,
    top_k: int = 1,
    max_answer_len: int = DEFAULT_ANSWER_LEN,
    handle_impossible_answer: bool = False,
) -> list[dict[str, Any]]:
    """What `answer` finds in the windows of ``text``: at most ``top_k`` answers, best first, and
    for one that is asked for at least an empty one. ``logits``: [tokens, 2] of each window."""
    answers: list[dict[str, Any]] = []
    null_score, floor = 1.0, -1.0
    for window, rows in zip(windows, logits, strict=True):
        start, end = _probabilities(rows, window.in_context, handle_impossible_answer)
        if handle_impossible_answer:
            null_score = min(null_score, float(start[0] * end[0]))
            start[0] = end[0] = 0
        for i, j in _best_spans(start, end, window.in_context, top_k, max_answer_len, floor):
            first, last = _characters(window, i, j)
            score = float(start[i] * end[j])
            answers.append(
                {"score": score, "start": first, "end": last, "answer": text[first:last]}
            )
        if len(answers) >= 2 * top_k:
            answers = _distinct(answers)[:top_k]
            if len(answers) == top_k:
                floor = answers[-1]["score"]
    if handle_impossible_answer:
        answers.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
    best = _distinct(answers)[:top_k]
    if top_k == 1 and not best:
        return [{"score": 0.0, "start": 0, "end": 0, "answer": ""}]
    return best


def _probabilities(
    logits: FloatArray, in_context: NDArray[np.bool_], with_first: bool
) -> tuple[Floats, Floats]:
    """Start and end probabilities [n] over the context (and the first token when asked)."""
    allowed = in_context.copy()
    allowed[0] |= with_first
    masked = np.where(allowed[:, None], logits, np.float32(-10000.0))
    return softmax(masked[:, 0]), softmax(masked[:, 1])


def _best_spans(
    start: Floats,
    end: Floats,
    in_context: NDArray[np.bool_],
    top_k: int,
    max_answer_len: int,
    floor: float,
) -> list[tuple[int, int]]:
    """The ``top_k`` best (first, last) token pairs inside the context whose score is above
    ``floor``, best first."""
    n = len(start)
    width = min(max_answer_len, n)
    firsts = np.arange(n)[:, None]
    lasts = firsts + np.arange(width)[None, :]
    inside = lasts < n
    lasts = np.minimum(lasts, n - 1)
    scores = start[:, None] * end[lasts]
    scores = np.where(inside & in_context[:, None] & in_context[lasts], scores, -1.0).ravel()
    places = np.flatnonzero(scores > floor)
    if len(places) > top_k:
        least = np.partition(scores[places], -top_k)[-top_k]
        places = places[scores[places] >= least]
    order = places[np.argsort(-scores[places], kind="stable")[:top_k]]
    return [(int(place) // width, int(lasts.ravel()[place])) for place in order]


def _characters(window: Window, first: int, last: int) -> tuple[int, int]:
    """Character range of a token span, widened to whole words."""
    begin, end = int(window.offsets[first, 0]), int(window.offsets[last, 1])
    same_first = window.in_context & (window.words == window.words[first])
    same_last = window.in_context & (window.words == window.words[last])
    if window.words[first] >= 0:
        begin = int(window.offsets[np.flatnonzero(same_first)[0], 0])
    if window.words[last] >= 0:
        end = int(window.offsets[np.flatnonzero(same_last)[-1], 1])
    return begin, end


def _distinct(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first, each character range once: windows overlap."""
    seen: dict[tuple[int, int], dict[str, Any]] = {}
    for item in sorted(answers, key=lambda item: -item["score"]):
        seen.setdefault((item["start"], item["end"]), item)
    return list(seen.values())
