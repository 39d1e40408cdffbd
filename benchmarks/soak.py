"""Many calls of random sizes from several threads: the same bits as alone, in bounded memory.

    python benchmarks/soak.py --calls 10000 --precision int8

Lengths, batch sizes and profiles (dense or pruned) are random. A share of the calls is compared,
sequence by sequence, with calls of one sequence. The baseline is the resident memory after every
caller has made the largest call and a quarter of its random ones. Exits with status 1 if a call
fails, a result differs or resident memory grew beyond the limit.

glibc keeps ever larger blocks that were freed: over 10,000 calls that adds some 100 MB, then no
more. To see the engine's own growth its threshold is held at 128 KB, unless --keep-malloc is given.
"""

from __future__ import annotations

import argparse
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tokprune_rt
from tokprune_rt import Model
from tokprune_rt.bench.models import SHAPES, Shape, model_folder
from tokprune_rt.policy import preset

SMALL = Shape("soak", "two layers of 64", 2, 64, 4, 256)
# None is the policy as it stands.
PROFILES = (None, "off")
ACTIONS = ("drop", "restore", "package")
ROUNDS = 5
STATUS = Path("/proc/self/status")
FIRST_ID, LAST_ID = 1000, 30000
M_MMAP_THRESHOLD = -3  # malloc.h


@dataclass
class Findings:
    """What all callers saw. `peak_mb` is sampled between calls, after the baseline was taken."""

    calls: int = 0
    tokens: int = 0
    compared: int = 0
    baseline_mb: float = 0.0
    peak_mb: float = 0.0
    last_mb: float = 0.0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def resident_mb() -> float:
    """VmRSS of this process, in 10^6 bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"{STATUS} has no VmRSS")


def make_batch(rng: np.random.Generator, longest: int, largest: int) -> list[NDArray[np.int64]]:
    lengths = rng.integers(1, longest + 1, rng.integers(1, largest + 1))
    return [rng.integers(FIRST_ID, LAST_ID, length) for length in lengths]


def differing(model: Model, batch: list[Any], found: list[Any], profile: str | None) -> list[int]:
    """Indices of the sequences whose final states are not those of a call of their own."""
    return [
        i
        for i, row in enumerate(batch)
        if model.forward([row], profile=profile).hidden[0].tobytes() != found[i].tobytes()
    ]


def soak(models: list[Model], options: argparse.Namespace, say: Callable[[str], None]) -> Findings:
    """Every caller makes its share of the calls, on the models in turn."""
    findings = Findings()
    together = threading.Barrier(options.callers)
    begin = perf_counter()

    def note(batch: list[Any], compared: bool) -> None:
        with findings.lock:
            findings.calls += 1
            findings.tokens += sum(map(len, batch))
            findings.compared += compared
            findings.last_mb = resident_mb()
            findings.peak_mb = max(findings.peak_mb, findings.last_mb)
            if findings.calls % max(1, options.calls // 20) == 0:
                say(
                    f"{findings.calls} calls, {findings.tokens} tokens, "
                    f"{perf_counter() - begin:.0f} s, {findings.last_mb:.0f} MB"
                )

    def random_call(rng: np.random.Generator) -> None:
        model = models[int(rng.integers(len(models)))]
        profile = PROFILES[int(rng.integers(len(PROFILES)))]
        batch = make_batch(rng, options.longest, options.batch)
        found = model.forward(batch, profile=profile).hidden
        compare = bool(rng.random() < options.compare)
        if compare and (wrong := differing(model, batch, found, profile)):
            findings.errors.append(f"{profile}: lengths {[len(batch[i]) for i in wrong]} differ")
        note(batch, compare)

    def work(caller: int) -> None:
        rng = np.random.default_rng([options.seed, caller])
        largest = [rng.integers(FIRST_ID, LAST_ID, options.longest)] * options.batch
        # An engine keeps one workspace for every part that ever ran at the same time as others.
        for model in models * ROUNDS:
            for profile in PROFILES:
                together.wait()
                model.forward(largest, profile=profile)
        share = options.calls // options.callers
        for count in range(share):
            if count == share // 4 and together.wait() == 0:
                findings.baseline_mb = findings.peak_mb = resident_mb()
            random_call(rng)

    def guarded(caller: int) -> None:
        try:
            work(caller)
        except threading.BrokenBarrierError:
            pass  # another caller failed
        except Exception as error:
            findings.errors.append(f"caller {caller}: {error!r}")
            together.abort()

    with ThreadPoolExecutor(options.callers) as pool:
        list(pool.map(guarded, range(options.callers)))
    return findings


def load_models(options: argparse.Namespace) -> list[Model]:
    """One model for each action that a policy can take."""
    shape = SMALL if options.shape == SMALL.name else SHAPES[options.shape]
    folder = model_folder(shape)
    return [
        tokprune_rt.load(
            folder,
            policy=preset("quantile", layers=shape.layers, q=0.3, action=action),
            precision=options.precision,
            threads=options.threads,
            isa=options.isa,
        )
        for action in ACTIONS
    ]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=4, help="Python threads (4)")
    parser.add_argument("--longest", type=int, default=512, help="tokens (512)")
    parser.add_argument("--batch", type=int, default=64, help="sequences of a call, at most (64)")
    parser.add_argument("--shape", choices=[SMALL.name, *SHAPES], default=SMALL.name)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=None, help="threads of the engine")
    parser.add_argument("--isa", default=None)
    parser.add_argument("--compare", type=float, default=0.02, help="share of the calls (0.02)")
    parser.add_argument("--growth", type=float, default=48, help="limit, in 10^6 bytes (48)")
    parser.add_argument("--keep-malloc", action="store_true", help="leave malloc as it is")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> int:
    options = parsed()
    if not options.keep_malloc:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 << 10)
    begin = perf_counter()
    found = soak(load_models(options), options, lambda line: print(line, flush=True))
    growth = found.last_mb - found.baseline_mb
    print(
        f"{found.calls} calls, {found.tokens} tokens in {perf_counter() - begin:.0f} s; "
        f"{found.compared} compared, {len(found.errors)} wrong; "
        f"resident {found.baseline_mb:.0f} MB after warm-up, {found.peak_mb:.0f} MB at most, "
        f"{found.last_mb:.0f} MB at the end"
    )
    for error in found.errors[:20]:
        print(error)
    if growth > options.growth:
        print(f"resident memory grew by {growth:.0f} MB; the limit is {options.growth:.0f} MB")
    return int(bool(found.errors) or growth > options.growth)


if __name__ == "__main__":
    raise SystemExit(main())
