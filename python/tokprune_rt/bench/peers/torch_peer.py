"""PyTorch with the transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertModel
from transformers.utils import logging as transformers_logging

from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch


def load_bert(folder: Path, attention: str) -> Any:
    """The encoder without its pooler, in evaluation mode."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model = BertModel.from_pretrained(
            folder, attn_implementation=attention, add_pooling_layer=False, dtype=torch.float32
        )
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
    return model.eval()


class TorchPeer:
    """Eager mode, scaled_dot_product_attention, inference mode."""

    note = "eager, sdpa, inference_mode"

    def __init__(self, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.bert = load_bert(folder, "sdpa")

    def prepare(self, batches: Sequence[PaddedBatch]) -> Call:
        inputs = [(torch.from_numpy(item.ids), torch.from_numpy(item.mask)) for item in batches]

        def call() -> list[FloatArray]:
            with torch.inference_mode():
                return [
                    self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
                    for ids, mask in inputs
                ]

        return call
