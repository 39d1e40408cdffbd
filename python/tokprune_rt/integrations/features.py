"""What sentence-transformers calls features: token ids and token embeddings as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokprune_rt.engine import batches
from tokprune_rt.integrations.extras import torch as _torch
from tokprune_rt.model import Model
from tokprune_rt.outputs import FloatArray
from tokprune_rt.tokenizer import TextOrPair, Tokens


def padded(model: Model, sequences: Sequence[Tokens]) -> dict[str, Any]:
    """int64 tensors [n, longest]: input_ids, token_type_ids where the model has them, mask."""
    torch = _torch()
    shape = len(sequences), max((len(item) for item in sequences), default=0)
    ids = np.full(shape, model.tokenizer.pad_id, dtype=np.int64)
    types, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, item in enumerate(sequences):
        ids[row, : len(item)] = item.ids
        types[row, : len(item)] = item.type_ids
        mask[row, : len(item)] = 1
    features = {"input_ids": torch.from_numpy(ids)}
    if model.tokenizer.typed:
        features["token_type_ids"] = torch.from_numpy(types)
    return features | {"attention_mask": torch.from_numpy(mask)}


def preprocess(model: Model, items: Sequence[TextOrPair], prompt: str | None) -> dict[str, Any]:
    """Features of texts or pairs with a prompt before each; nothing for no texts."""
    if not items:
        return {}
    found: dict[str, Any] = padded(model, model.tokenizer.tokenize(prompted(items, prompt)))
    found["modality"] = "text"
    if prompt:
        found["prompt_length"] = model.tokenizer.prompt_length(prompt)
    return found


def prompted(items: Sequence[TextOrPair], prompt: str | None) -> list[TextOrPair]:
    """Texts, or the first text of pairs, after a prompt."""
    if not prompt:
        return list(items)
    return [
        prompt + item if isinstance(item, str) else (prompt + item[0], item[1]) for item in items
    ]


def token_embeddings(
    model: Model, sequences: Sequence[Tokens], *, profile: str | None, batch_size: int
) -> list[FloatArray]:
    """Hidden states float32 [tokens_i, hidden] of every sequence.

    Raises ValueError when the policy removes tokens without restoring them.
    """
    found: list[FloatArray] = [np.empty((0, 0), dtype=np.float32)] * len(sequences)
    for indices in batches([len(item) for item in sequences], batch_size):
        output = model.forward(
            [sequences[i].ids for i in indices], [sequences[i].type_ids for i in indices], profile
        )
        for index, rows in zip(indices, output.hidden, strict=True):
            if len(rows) != len(sequences[index]):
                raise ValueError(
                    f"token embeddings are asked for, but the pruning policy of {model.name} left "
                    f"{len(rows)} of {len(sequences[index])} tokens of inputs[{index}]; use "
                    'profile="off" or a policy that restores what it drops'
                )
            found[index] = rows
    return found
