"""Whether a trained folder decides in the runtime as it did in training, over a whole split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tokprune_rt.loading import load
from tokprune_rt.policy import find_policy
from tokprune_rt.train import Data, MaskedEncoder, PolicyChooser
from tokprune_rt.train.data import collate
from tokprune_rt.train.evaluating import task_of
from tokprune_rt.train.folders import finetuned_model
from tokprune_rt.train.masked import rows_of

_BATCH = 32


@dataclass(frozen=True)
class Parity:
    """PyTorch under the policy's masks against the runtime, fp32.

    Attributes:
        decisions: tokens times layers.
        different: of them, kept by one side only.
        training_score, runtime_score: in points.
    """

    decisions: int
    different: int
    training_score: float
    runtime_score: float


def parity(folder: Path, data: Data, metric: str | None) -> Parity:
    """Both sides on the same tokens, in batches of neighbours in length."""
    model = load(folder, precision="fp32")
    policy = find_policy(folder)
    if policy is None:
        raise ValueError(f"{folder} has no policy")
    theirs = finetuned_model(folder)
    theirs.train(False)
    encoder = MaskedEncoder(theirs)
    task = task_of(model, metric)
    encoded = task.encode(data, model.tokenizer)
    tokens = encoded.tokens
    order = np.argsort([len(item) for item in tokens], kind="stable")
    empty = np.zeros(0, np.float32)
    logits = [[empty] * len(tokens), [empty] * len(tokens)]
    decisions = different = 0
    typed = model.config.type_vocab_size > 1
    with torch.inference_mode(), encoder.choosing(PolicyChooser(policy)):
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            part = [tokens[i] for i in places]
            batch = collate(part, theirs.config.pad_token_id or 0, typed, torch.device("cpu"))
            output, run = encoder.run(batch)
            ours = model.forward(
                [item.ids for item in part],
                [item.type_ids for item in part] if typed else None,
                trace=True,
                segment_ids=[item.segments for item in part],
            )
            assert ours.trace is not None and ours.logits is not None
            both = zip(places, rows_of(output, run.lengths), ours.logits, strict=True)
            for place, trained, ran in both:
                logits[0][place], logits[1][place] = trained.numpy(), ran
            for layer, alive in enumerate(run.kept):
                for row, kept in enumerate(ours.trace.kept[layer]):
                    here = np.zeros(alive.shape[1], bool)
                    here[kept] = True
                    different += int((here != alive[row].numpy()).sum())
                    decisions += len(part[row])
    return Parity(decisions, different, *(task.score(found, encoded) for found in logits))
