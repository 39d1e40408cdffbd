"""Passes under the benchmark's policy (half of the multiply-adds), for a profiler to look at.

pip install . --config-settings=install.strip=false
perf record -F 1999 --delay=5000 python benchmarks/pruned_pass.py --precision int8
perf report --no-children
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import tokprune_rt
from tokprune_rt.bench.models import SHAPES, model_folder
from tokprune_rt.bench.pruning import halving_policy

SEQUENCES, TOKENS = 32, 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="minilm")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--dense", action="store_true", help="the same without the policy")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    policy = "off" if options.dense else halving_policy(shape.layers)
    model = tokprune_rt.load(model_folder(shape), policy=policy, precision=options.precision)
    rng = np.random.default_rng(0)
    size = (SEQUENCES, TOKENS)
    ids = list(rng.integers(1000, model.config.vocab_size, size=size, dtype=np.int32))
    end, passes = time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        stats = model.forward(ids).stats
        passes += 1
    print(f"{passes} passes at {stats.macs / stats.macs_dense:.0%} of the multiply-adds")


if __name__ == "__main__":
    main()
