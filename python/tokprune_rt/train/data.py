"""Labelled texts, and padded batches of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokprune_rt.loader import describe_model
from tokprune_rt.tokenizer import TextOrPair, Tokenizer, Tokens

IGNORED = -100
"""Target of a token that no loss looks at."""


@dataclass(frozen=True)
class Examples:
    """Texts or pairs and their labels as the file spells them.

    ``places`` says where each was found, for messages; it may be left out.
    """

    texts: list[TextOrPair]
    labels: list[str]
    places: Sequence[str] = field(default=(), repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Sentences:
    """Sentences as lists of words with a tag for each word; ``places`` as in `Examples`."""

    words: list[list[str]]
    tags: list[list[str]]
    places: Sequence[str] = field(default=(), repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True)
class Question:
    """A question about a context; ``answers`` are (text, first character), none if it has no
    answer there."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Questions:
    """Questions of SQuAD's form."""

    items: list[Question]

    def __len__(self) -> int:
        return len(self.items)


Data = Examples | Sentences | Questions


def tokenizer_of(folder: Path, max_length: int | None = None) -> Tokenizer:
    """The tokenizer that the runtime uses for this model, cut to ``max_length`` tokens."""
    config, setup = describe_model(folder)
    return Tokenizer(
        setup.encoder_folder,
        config.family.model_type,
        max_positions=config.max_positions,
        max_length=max_length if max_length is not None else setup.max_seq_length,
        do_lower_case=setup.do_lower_case,
    )


@dataclass(frozen=True)
class Encoded:
    """What a model sees of the data, and what it is to answer.

    Attributes:
        tokens: the sequences.
        targets: one row a sequence: class numbers, int64 [n]; values, float32 [n]; classes of
            tokens, int64 [n, longest], filled up with `IGNORED`; first and last token of the
            answer, int64 [n, 2].
        truth: what else the task's score needs.
        note: what a user should know about the encoding.
    """

    tokens: list[Tokens]
    targets: Tensor
    truth: Any = None
    note: str | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def collate(
    tokens: Sequence[Tokens], pad_id: int, typed: bool, device: torch.device
) -> dict[str, Tensor]:
    """Pad to the longest: input_ids, attention_mask, segment_ids, and token_type_ids if typed."""
    shape = (len(tokens), max(len(item) for item in tokens))
    arrays = {name: np.zeros(shape, np.int64) for name in ("ids", "type_ids", "segments", "mask")}
    arrays["ids"][:] = pad_id
    for row, item in enumerate(tokens):
        for name in ("ids", "type_ids", "segments"):
            arrays[name][row, : len(item)] = getattr(item, name)
        arrays["mask"][row, : len(item)] = 1
    found = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    inputs = {"input_ids": found["ids"], "attention_mask": found["mask"]}
    inputs["segment_ids"] = found["segments"]
    if typed:
        inputs["token_type_ids"] = found["type_ids"]
    return inputs


def training_batches(
    lengths: Sequence[int], batch_size: int, generator: np.random.Generator
) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """One epoch of batches in random order; neighbours in length share a batch."""
    order = generator.permutation(len(lengths))
    stretch = 50 * batch_size
    batches = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        part = part[np.argsort([lengths[i] for i in part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def parts_of(batch: Sequence[int], lengths: Sequence[int], most: int) -> list[list[int]]:
    """A batch in parts whose sequences, padded to the longest, have ``most`` pairs of tokens or
    fewer; longest first. A single sequence may have more."""
    parts: list[list[int]] = []
    for place in sorted(batch, key=lambda place: -lengths[place]):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] ** 2 <= most:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts
