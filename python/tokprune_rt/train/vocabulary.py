"""Only the word embeddings that occur in the texts take part in training.

A vocabulary has 30,000 rows, a multilingual one 250,000, a training set a few thousand of them. The
others have no gradient, but gradients, their norm and the optimizer pass over all rows at every
step: of 250,000 rows of 384 numbers that is four tenths of a step on 32 texts of 32 tokens
(benchmarks/training_steps.py), and a gigabyte. Rows that do not take part do not decay either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tokprune_rt.tokenizer import Tokens


class WordRows(nn.Module):
    """The rows ``ids`` (int64 [n], ascending) of an embedding, under their old numbers.

    IndexError for any other number.
    """

    def __init__(self, whole: nn.Embedding, ids: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(whole.weight.detach()[ids])
        places = torch.full((whole.num_embeddings,), -1, device=ids.device)
        places[ids] = torch.arange(len(ids), device=ids.device)
        self.places: Tensor
        self.register_buffer("places", places, persistent=False)
        self._padding = None if whole.padding_idx is None else int(places[whole.padding_idx])

    def forward(self, input_ids: Tensor) -> Tensor:
        return functional.embedding(self.places[input_ids], self.weight, self._padding)


@contextmanager
def words_of(model: PreTrainedModel, texts: Iterable[Tokens]) -> Iterator[None]:
    """Within it the model knows no words but those of ``texts`` and the padding; what they learn
    stays. Embeddings that do not learn are left as they are."""
    whole = model.get_input_embeddings()
    if not isinstance(whole, nn.Embedding) or not whole.weight.requires_grad:
        yield
        return
    used = torch.zeros(whole.num_embeddings, dtype=torch.bool)
    used[model.config.pad_token_id or 0] = True
    for text in texts:
        used[torch.as_tensor(text.ids, dtype=torch.int64)] = True
    ids = used.nonzero()[:, 0].to(whole.weight.device)
    rows = WordRows(whole, ids)
    model.set_input_embeddings(rows)
    try:
        yield
    finally:
        with torch.no_grad():
            whole.weight[ids] = rows.weight
        model.set_input_embeddings(whole)
