"""Fine-tune all-MiniLM-L6-v2 on SST-2, for `quality.py`.

    python benchmarks/finetune.py --data FOLDER --out DIR

FOLDER holds glue/SST-2/train.tsv and dev.tsv (columns sentence and label). DIR becomes an ordinary
Hugging Face folder of a BertForSequenceClassification, which `tokprune_rt.load` reads.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from quality_data import Labelled, sst2
from transformers import AutoTokenizer, BertForSequenceClassification, get_scheduler

from tokprune_rt.loader import resolve

MODEL = "all-MiniLM-L6-v2"
SEED = 20240229
SENTENCES, EPOCHS, BATCH = 16_000, 2, 32
MAX_TOKENS, RATE, WARM_UP, DECAY = 64, 5e-5, 0.06, 0.01
LABELS = ("negative", "positive")


def accuracy(model: BertForSequenceClassification, tokenizer: Any, data: Labelled) -> float:
    """Share of the sentences whose highest logit is their label's."""
    right = 0
    model.eval()
    for start in range(0, len(data.texts), 64):
        part = slice(start, start + 64)
        inputs = encoded(tokenizer, data.texts[part])
        with torch.inference_mode():
            found = model(**inputs).logits.argmax(dim=1).numpy()
        right += int((found == data.labels[part]).sum())
    return right / len(data.texts)


def encoded(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    """Padded to the longest."""
    return tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )


def train(model: BertForSequenceClassification, tokenizer: Any, data: Labelled) -> None:
    """Two passes in random order; prints the loss now and then."""
    order = np.random.default_rng(SEED)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=RATE,
    )
    steps = EPOCHS * (len(data.texts) // BATCH)
    schedule = get_scheduler("linear", optimizer, int(WARM_UP * steps), steps)
    begin, losses, step = perf_counter(), [], 0
    model.train()
    for _ in range(EPOCHS):
        places = order.permutation(len(data.texts))
        for start in range(0, len(places) - BATCH + 1, BATCH):
            items = places[start : start + BATCH]
            inputs = encoded(tokenizer, [data.texts[i] for i in items])
            loss = model(**inputs, labels=torch.from_numpy(data.labels[items])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            step += 1
            if step % 100 == 0:
                took = perf_counter() - begin
                print(f"step {step} of {steps}, loss {np.mean(losses[-100:]):.4f}, {took:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    whole = sst2(arguments.data, "train")
    chosen = np.random.default_rng(SEED).permutation(len(whole.texts))[:SENTENCES]
    data = Labelled([whole.texts[i] for i in chosen], whole.labels[chosen])
    source = resolve(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=512)
    model = BertForSequenceClassification.from_pretrained(
        source,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        dtype=torch.float32,
    )
    train(model, tokenizer, data)
    print(f"dev accuracy {accuracy(model, tokenizer, sst2(arguments.data, 'dev')):.4f}")
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
