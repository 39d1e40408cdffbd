"""What it saves a training step not to compute the rows of tokens that have left.

    python benchmarks/training_steps.py [--bf16]

Gradient steps of all-MiniLM-L6-v2 with a classification head under top-k policies, masked and
executed in turns, on random tokens of equal length. Both must give the same logits first. A ratio
is the median over rounds of the executed step's time to the masked one's in the same round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
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

MODEL = "all-MiniLM-L6-v2"
# Tokens of a text, and texts of a step.
SHAPES = ((32, 32), (128, 32), (512, 4))
# Shares of the input that the last layer keeps.
KEPT = (0.5, 0.0)


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
    model = transformers.AutoModelForSequenceClassification.from_pretrained(resolve(MODEL)).eval()
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


if __name__ == "__main__":
    main()
