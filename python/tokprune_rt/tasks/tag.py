"""Token classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tokprune_rt.inputs import text_list
from tokprune_rt.outputs import FloatArray, split_rows
from tokprune_rt.tasks.numeric import Floats, softmax
from tokprune_rt.tokenizer import check_text

if TYPE_CHECKING:
    from tokenizers import Encoding

    from tokprune_rt.model import Model
    from tokprune_rt.tokenizer import Tokenizer, Tokens

STRATEGIES = ("none", "simple")
Entity = dict[str, Any]


def token_logits(
    model: Model, sequences: Sequence[Tokens], *, profile: str | None, batch_size: int
) -> list[FloatArray]:
    """Logits float32 [tokens_i, labels] of every sequence, in the order given."""
    found: list[FloatArray | None] = [None] * len(sequences)
    runs = model.engine.run(sequences, "logits", profile=profile, batch_size=batch_size)
    for indices, result, bounds in runs:
        logits = result["logits"]
        if logits is not None:
            for index, rows in zip(indices, split_rows(logits, bounds), strict=True):
                found[index] = rows
    return [rows for rows in found if rows is not None]


def tag(
    model: Model,
    text: object,
    *,
    profile: str | None = None,
    aggregation_strategy: str = "none",
    ignore_labels: Sequence[str] = ("O",),
    batch_size: int = 32,
    truncate: bool = True,
) -> Any:
    """Label the tokens of a text.

    Args:
        model: a token-classification model.
        text: a text or a collection of texts.
        profile: the policy's profile.
        aggregation_strategy: ``"none"`` for one entry per token, ``"simple"`` to join neighbouring
            tokens of one entity.
        ignore_labels: labels to leave out.
        batch_size: a batch holds at most ``128 * batch_size`` tokens.
        truncate: False refuses over-long texts instead of cutting them.

    Returns:
        For a text, a list of ``{"entity", "score", "index", "word", "start", "end"}``, with
        ``"simple"`` of ``{"entity_group", "score", "word", "start", "end"}``; for a collection, a
        list of such lists.

    Raises:
        ValueError: the model has no such head, unknown strategy or profile, over-long text with
            ``truncate=False``.
        TypeError: something is no text; names its index.
    """
    model.require_task("token-classification", "tag")
    check_strategy(aggregation_strategy)
    single = isinstance(text, str)
    texts = [check_text(text, "text")] if single else text_list(text, "text")
    encodings = model.tokenizer.encodings(texts, truncate=truncate)
    sequences = [model.tokenizer.tokens(encoding) for encoding in encodings]
    logits = token_logits(model, sequences, profile=profile, batch_size=batch_size)
    results = [
        entities_of(model, source, encoding, rows, aggregation_strategy, ignore_labels)
        for source, encoding, rows in zip(texts, encodings, logits, strict=True)
    ]
    return results[0] if single else results


def check_strategy(strategy: str) -> None:
    """ValueError listing the strategies for an unknown one."""
    if strategy not in STRATEGIES:
        raise ValueError(
            f"unknown aggregation_strategy {strategy!r}; supported are {', '.join(STRATEGIES)}"
        )


def entities_of(
    model: Model,
    text: str,
    encoding: Encoding,
    logits: FloatArray,
    strategy: str,
    ignore_labels: Sequence[str],
) -> list[Entity]:
    """What logits [tokens, labels] of a text say, in the form that `tag` returns."""
    entities = _entities(model.tokenizer, model.labels, text, encoding, softmax(logits))
    if strategy == "simple":
        entities = _grouped(model.tokenizer, entities)
    return [
        entity
        for entity in entities
        if entity.get("entity", entity.get("entity_group")) not in ignore_labels
    ]


def _entities(
    tokenizer: Tokenizer, labels: Sequence[str], text: str, encoding: Encoding, scores: Floats
) -> list[Entity]:
    entities = []
    offsets, special = encoding.offsets, encoding.special_tokens_mask
    for index, token_id in enumerate(encoding.ids):
        if special[index]:
            continue
        start, end = offsets[index]
        word = text[start:end] if token_id == tokenizer.unknown_id else tokenizer.token(token_id)
        best = int(scores[index].argmax())
        entities.append(
            {
                "entity": labels[best],
                "score": float(scores[index, best]),
                "index": index,
                "word": word,
                "start": start,
                "end": end,
            }
        )
    return entities


def _kind(label: str) -> tuple[str, str]:
    """Position (B or I) and name of a label; one without a prefix continues."""
    if label.startswith(("B-", "I-")):
        return label[0], label[2:]
    return "I", label


def _grouped(tokenizer: Tokenizer, entities: list[Entity]) -> list[Entity]:
    groups: list[list[Entity]] = []
    for entity in entities:
        begin, name = _kind(entity["entity"])
        if groups and begin != "B" and name == _kind(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in group])),
            "word": tokenizer.join([entity["word"] for entity in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]
