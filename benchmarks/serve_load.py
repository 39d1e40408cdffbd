"""Load on servers of embeddings, one text of mixed length per request; one table per mode.

    python benchmarks/serve_load.py load --clients 1 8 64 512   # latency by number of clients
    python benchmarks/serve_load.py equal                       # throughput within a p99
    python benchmarks/serve_load.py single                      # a short text, and the engine alone
    python benchmarks/serve_load.py capacity --slo-ms 100       # highest rate before the first 429
    python benchmarks/serve_load.py overload --rate 80 --minutes 10   # twice what it carries

`load` and `equal` measure `tokprune serve` in fp32 and int8 and, one after the other and with the
same threads, sentence-transformers behind FastAPI (`pip install fastapi`) and infinity
(`--infinity PATH` of the `infinity_emb` of an environment of its own: `pip install
"infinity-emb[torch,server]"`). Every server's vectors are compared with the model's own before it
is measured. All load the model from a copy that reads texts of up to the longest length. In `load`
and `equal` each client waits for its answer before it asks again; in `capacity` and `overload`
requests come at random moments, however many are unanswered. The servers' processor time tells more
than the clock on a machine that does other work meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from serve_clients import (
    Connection,
    Load,
    Target,
    closed_loop,
    open_loop,
    percentile,
    resident_mb,
    text_of,
)
from serve_servers import NAMES, copied, serving

import tokprune_rt

MODEL = "all-MiniLM-L6-v2"
_SHORT = 12
# What a search for the highest rate stops at, and how much longer it looks.
_NEAR = 1.05
_STEPS = 12
# What it gives the server to forget the load of the last step.
_PAUSE = 2.0


def run(work: Any) -> Any:
    """Run a coroutine on the fastest loop there is."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def row(*cells: object) -> None:
    """A row of a table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    """The first rows of a table."""
    row(*cells)
    row("---", *("--:" for _ in cells[1:]))


def measure(target: Target, clients: int, arguments: argparse.Namespace) -> Load:
    """Closed-loop load from so many clients."""
    found: Load = run(closed_loop(target, clients, arguments.seconds, arguments.lengths))
    return found


def others(load: Load) -> str:
    """What was not answered with a result."""
    parts = [f"{load.refused} x 429"] if load.refused else []
    return ", ".join([*parts, *(f"{n} x {code}" for code, n in load.failed.items())])


def by_clients(arguments: argparse.Namespace) -> None:
    """Throughput and latency of every server by number of clients."""
    head(
        *("server", "clients", "requests/s", "tokens/s", "p50 ms", "p99 ms"),
        *("CPU ms per 1000 tokens", "not answered"),
    )
    for name in arguments.servers:
        with serving(name, arguments) as target:
            for clients in arguments.clients:
                load = measure(target, clients, arguments)
                cpu = 1000 * load.cpu_seconds / max(1e-9, load.tokens / 1000)
                row(
                    *(name, clients, f"{load.rate:.1f}", f"{load.tokens / load.seconds:.0f}"),
                    *(f"{load.quantile(0.5):.1f}", f"{load.quantile(0.99):.1f}"),
                    *(f"{cpu:.0f}", others(load)),
                )


def at_equal_p99(arguments: argparse.Namespace) -> None:
    """The most tokens per second that each server answers within a p99."""
    loads: dict[str, list[Load]] = {}
    for name in arguments.servers:
        with serving(name, arguments) as target:
            loads[name] = [measure(target, clients, arguments) for clients in arguments.clients]
    ours = [name for name in loads if name.startswith("tokprune")]
    peers = [name for name in loads if name not in ours]
    rates, ratios = (f"{name}, tokens/s" for name in loads), (f"{n} / best other" for n in ours)
    head("p99 at most, ms", *rates, *ratios)
    for bound in arguments.p99:
        # What turns requests away has an easy p99.
        best = {
            name: max(
                (
                    load.tokens / load.seconds
                    for load in found
                    if load.quantile(0.99) <= bound and not load.refused and not load.failed
                ),
                default=0.0,
            )
            for name, found in loads.items()
        }
        peer = max((best[name] for name in peers), default=0.0)
        row(
            *(f"{bound:g}", *(f"{rate:.0f}" if rate else "-" for rate in best.values())),
            *(f"{best[name] / peer:.2f}x" if peer and best[name] else "-" for name in ours),
        )


def single(arguments: argparse.Namespace) -> None:
    """A short text through the server and through the engine in this process, in turns."""
    rng = random.Random(0)
    head(*("precision", "engine alone, p50 ms", "request, p50 ms", "difference, ms"))
    for name in ("tokprune", "tokprune int8"):
        precision = "int8" if name.endswith("int8") else "fp32"
        model = tokprune_rt.load(
            arguments.model, policy="off", precision=precision, threads=arguments.threads
        )
        with serving(name, arguments) as target:
            alone, asked = run(_in_turns(target, model, arguments.seconds, rng))
        a, b = (percentile(times, 0.5) for times in (alone, asked))
        row(precision, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}")


async def _in_turns(
    target: Target, model: Any, seconds: float, rng: random.Random
) -> tuple[list[float], list[float]]:
    connection = Connection(target)
    await connection.open()
    alone, asked = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        text = text_of(_SHORT, rng)
        started = time.perf_counter()
        model.encode(text, normalize_embeddings=True)
        between = time.perf_counter()
        status, _, _ = await connection.post(text)
        asked.append(time.perf_counter() - between)
        alone.append(between - started)
        assert status == 200
    connection.close()
    return alone, asked


def options(arguments: argparse.Namespace, slo: bool) -> list[str]:
    """Of `tokprune serve`, under a policy, without or with an objective."""
    found = ["--policy", arguments.policy, "--profile", "off"]
    return [*found, "--slo-ms", str(arguments.slo_ms)] if slo else found


def highest(target: Target, arguments: argparse.Namespace) -> tuple[float, Load]:
    """The highest rate at which nothing is refused, and what it was like."""
    guess = closed_loop(target, 32, max(1.0, arguments.seconds / 5), arguments.lengths)
    rate = 0.7 * run(guess).rate
    low, high, best = 0.0, 0.0, Load(0.0)
    for _ in range(_STEPS):
        time.sleep(_PAUSE)
        load = run(open_loop(target, rate, arguments.seconds, arguments.lengths))
        if load.refused or load.failed:
            high = rate
        else:
            low, best = rate, load
        if low and high and high / low < _NEAR:
            break
        rate = 1.4 * low if not high else (low + high) / 2 if low else high / 1.4
    return low, best


def capacity(arguments: argparse.Namespace) -> None:
    """The highest rate before the first 429, without and with an objective."""
    head("", "requests/s before the first 429", "as many", "p50 ms", "p99 ms", "tokens kept")
    first = 0.0
    for slo in (False, True):
        with serving(arguments.servers[0], arguments, *options(arguments, slo)) as target:
            rate, load = highest(target, arguments)
            first = first or rate
            row(
                *(f"--slo-ms {arguments.slo_ms:g}" if slo else "dense", f"{rate:.1f}"),
                *(f"{rate / first:.2f}x" if first else "-", f"{load.quantile(0.5):.0f}"),
                *(f"{load.quantile(0.99):.0f}", f"{kept(target):.0%}"),
            )


def kept(target: Target) -> float:
    """The share of all tokens that the server's calls kept to the end."""
    with urllib.request.urlopen(target.url + "/metrics") as response:
        lines = response.read().decode().splitlines()
    samples = dict(line.rpartition(" ")[::2] for line in lines if not line.startswith("#"))
    tokens, left = (
        float(samples[f'tokprune_tokens{part}_total{{model="m"}}']) for part in ("", "_kept")
    )
    return left / tokens


def overload(arguments: argparse.Namespace) -> None:
    """Twice the rate that it carries, for some minutes."""
    slo = arguments.slo_ms is not None and arguments.with_slo
    with serving(arguments.servers[0], arguments, *options(arguments, slo)) as target:
        carried = arguments.rate or highest(target, arguments)[0]
        seconds = 60 * arguments.minutes
        parts: list[Load] = [Load(seconds / 10) for _ in range(10)]
        memory: list[float] = []

        def each(due: float, status: int, latency: float) -> None:
            part = min(9, int(10 * due / seconds))
            parts[part].count(status, latency, 0)
            while len(memory) <= part:
                memory.append(resident_mb(target.pid))

        sent = run(open_loop(target, 2 * carried, seconds, arguments.lengths, each=each))
        with urllib.request.urlopen(target.url + "/metrics") as response:
            still = "tokprune_requests_in_flight 0.0" in response.read().decode()
        head(
            *("tenth", "sent/s", "answered/s", "p50 ms", "p99 ms of answered", "429"),
            *("other than 200 and 429", "resident MB"),
        )
        for place, part in enumerate(parts):
            total = sum(part.statuses.values())
            row(
                *(place + 1, f"{total / part.seconds:.1f}", f"{part.rate:.1f}"),
                *(f"{part.quantile(0.5):.0f}", f"{part.quantile(0.99):.0f}", part.refused),
                *(json.dumps(part.failed), f"{memory[place]:.0f}" if place < len(memory) else "-"),
            )
        row(
            *("all", f"{sum(sent.statuses.values()) / seconds:.1f}", f"{sent.rate:.1f}"),
            *(f"{sent.quantile(0.5):.0f}", f"{sent.quantile(0.99):.0f}", sent.refused),
            *(json.dumps(sent.failed), f"{resident_mb(target.pid):.0f}"),
        )
        left = "nothing" if still else "SOMETHING"
        print(f"\nevery request was answered; {left} is still in flight")


MODES = {
    "load": by_clients,
    "equal": at_equal_p99,
    "single": single,
    "capacity": capacity,
    "overload": overload,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--servers", nargs="+", choices=NAMES, help="default: those that there are")
    parser.add_argument("--clients", type=int, nargs="+")
    parser.add_argument("--p99", type=float, nargs="+", default=[50, 100, 200, 500, 1000, 2000])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--minutes", type=float, default=10.0, help="of overload")
    parser.add_argument("--rate", type=float, help="that is carried; default: overload measures it")
    parser.add_argument("--lengths", type=int, nargs=2, default=(8, 512), metavar=("MIN", "MAX"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--policy", default="calibrated", help="of capacity and overload")
    parser.add_argument("--slo-ms", type=float, default=100.0, help="of capacity and --with-slo")
    parser.add_argument("--with-slo", action="store_true", help="overload with --slo-ms")
    parser.add_argument("--infinity", default=shutil.which("infinity_emb"), metavar="PATH")
    arguments = parser.parse_args(argv)
    arguments.lengths = tuple(arguments.lengths)
    if arguments.servers is None:
        arguments.servers = [n for n in NAMES if n != "infinity" or arguments.infinity]
    if arguments.clients is None:
        equal = arguments.mode == "equal"
        arguments.clients = [1, 2, 4, 8, 16, 32, 64] if equal else [1, 8, 64, 512]
    with copied(arguments.model, arguments.lengths[1]) as arguments.model:
        MODES[arguments.mode](arguments)


if __name__ == "__main__":
    main()
