"""What it saves a training step not to compute the rows of tokens that have left, and to leave
words that do not occur out of the optimizer.

    python benchmarks/training_steps.py [--bf16]

Gradient steps of all-MiniLM-L6-v2 with a classification head under top-k policies, masked and
executed in turns, on random tokens of equal length. Both must give the same logits first. A ratio
is the median over rounds of the executed step's time to the masked one's in the same round.
The second table is of dense steps with the optimizer's, on 8,000 words of vocabularies of two
sizes, the other rows as they are or left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from tokprune_rt.bench.timing import alternate
from tokprune_rt.loader import resolve
from tokprune_rt.policy import parse_policy
from tokprune_rt.train.budget import Widths
from tokprune_rt.train.folders import quiet_transformers
from tokprune_rt.train.hard import PolicyChooser
from tokprune_rt.train.latency import ratio_policy
from tokprune_rt.train.leaving import FROM_FIRST
from tokprune_rt.train.masked import MaskedEncoder
from tokprune_rt.train.merging import executing
from tokprune_rt.train.vocabulary import words_of

MODEL = "all-MiniLM-L6-v2"
CLASSIFIER = transformers.AutoModelForSequenceClassification
# Tokens of a text, and texts of a step.
SHAPES = ((32, 32), (128, 32), (512, 4))
# Shares of the input that the last layer keeps.
KEPT = (0.5, 0.0)
# Rows of the word embedding (a multilingual one has 250,000), and those that occur.
ROWS, OCCUR = (30_522, 250_002), 8_000


def step_of(
    encoder: MaskedEncoder, chooser: Any, inputs: dict[str, Any], bf16: bool
) -> Callable[[], Any]:
    """One forward and backward pass; returns the logits and the tokens that each layer left."""

    def step() -> Any:
        encoder.model.zero_grad()
        narrow = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
        with narrow, encoder.choosing(chooser):
            output, run = encoder.run(inputs)
            output.logits.float().square().sum().backward()
        return output.logits.detach().float(), [alive.sum(dim=1) for alive in run.kept]

    return step


def learning_step(model: Any, inputs: dict[str, Any], bf16: bool) -> Callable[[], Any]:
    """A dense step with the gradient's norm and the optimizer's part."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def step() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(**inputs).logits
        logits.float().square().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return logits.detach()

    return step


def compare_vocabularies(rounds: int, bf16: bool) -> None:
    print("\n| rows | tokens | texts | all ms | those that occur ms | ratio |")
    print("|--:|--:|--:|--:|--:|--:|")
    length, texts = SHAPES[0]
    for rows in ROWS:
        ids = torch.randint(1000, OCCUR, (texts, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with ExitStack() as stack:
            steps = []
            for words in (False, True):
                torch.manual_seed(0)
                model = CLASSIFIER.from_pretrained(resolve(MODEL)).eval()
                model.resize_token_embeddings(rows, mean_resizing=False)
                if words:
                    occur: Any = SimpleNamespace(ids=torch.arange(OCCUR))
                    stack.enter_context(words_of(model, [occur]))
                steps.append(learning_step(model, inputs, bf16))
            torch.testing.assert_close(steps[0](), steps[1]())
            slow, fast = alternate(steps, rounds, 60.0)
        print(
            f"| {rows} | {length} | {texts} | {slow.median_ms:.0f} | {fast.median_ms:.0f} "
            f"| {1 / fast.times_faster_than(slow):.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_transformers()
    torch.manual_seed(0)
    model = CLASSIFIER.from_pretrained(resolve(MODEL)).eval()
    config = model.config
    widths = Widths(config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    print("| tokens | texts | multiply-adds | masked ms | executed ms | executed / masked |")
    print("|--:|--:|--:|--:|--:|--:|")
    for length, texts in SHAPES:
        ids = torch.randint(1000, config.vocab_size, (texts, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for kept in KEPT:
            policy = parse_policy(ratio_policy(widths.layers, kept))
            masked = step_of(MaskedEncoder(model), PolicyChooser(policy), inputs, options.bf16)
            executed = step_of(*executing(model, policy, FROM_FIRST), inputs, options.bf16)
            logits, left = masked()
            near = 3e-2 if options.bf16 else 1e-4
            torch.testing.assert_close(executed()[0], logits, atol=near, rtol=0)
            macs = float(widths.share_of_dense(torch.full((texts,), length), left))
            slow, fast = alternate([masked, executed], options.rounds, 60.0)
            print(
                f"| {length} | {texts} | {macs:.0%} | {slow.median_ms:.0f} | {fast.median_ms:.0f} "
                f"| {1 / fast.times_faster_than(slow):.2f} |",
                flush=True,
            )
    compare_vocabularies(options.rounds, options.bf16)


if __name__ == "__main__":
    main()
