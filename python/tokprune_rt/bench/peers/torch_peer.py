"""PyTorch with the transformers library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tokprune_rt.bench.peers.base import Call, FloatArray, PaddedBatch, PeerSetup

_transformers = import_module("transformers")
_logging = _transformers.utils.logging
_BertModel = _transformers.BertModel


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting on the loading of weights."""
    level, bars = _logging.get_verbosity(), _logging.is_progress_bar_enabled()
    _logging.set_verbosity_error()
    _logging.disable_progress_bar()
    try:
        yield
    finally:
        _logging.set_verbosity(level)
        if bars:
            _logging.enable_progress_bar()


def load_bert(folder: Path, attention: str) -> Any:
    """The encoder without its pooler, in evaluation mode."""
    with quiet():
        model = _BertModel.from_pretrained(
            folder, attn_implementation=attention, add_pooling_layer=False, dtype=torch.float32
        )
    return model.eval()


class TorchPeer:
    """Eager mode, scaled_dot_product_attention, inference mode."""

    def __init__(self, setup: PeerSetup) -> None:
        torch.set_num_threads(setup.threads)
        self.bert = load_bert(setup.folder, "sdpa")
        self.note = "eager, sdpa, inference_mode"
        if setup.precision == "bf16":
            self.bert = self.bert.to(torch.bfloat16)
            self.note = f"bfloat16 weights and activations, {self.note}"

    def prepare(self, batches: Sequence[PaddedBatch]) -> Call:
        inputs = [(torch.from_numpy(item.ids), torch.from_numpy(item.mask)) for item in batches]

        def call() -> list[FloatArray]:
            with torch.inference_mode():
                return [
                    self.bert(input_ids=ids, attention_mask=mask).last_hidden_state.float().numpy()
                    for ids, mask in inputs
                ]

        return call
