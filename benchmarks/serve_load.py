"""Load on a server: latency and throughput of texts of mixed length from several clients.

    python benchmarks/serve_load.py --clients 1 8 64 --seconds 10

Starts `tokprune serve` and, beside it for comparison, sentence-transformers behind FastAPI, one
after the other and with the same threads, and sends them the same texts, one per request, over
connections that stay open; lengths are spread evenly over their logarithm. Each client waits for
its answer before it asks again, and as long as it is told to when it is refused. The server's own
processor time tells more than the clock on a machine that does other work meanwhile. `--url`
measures a server that runs already. Needs `pip install fastapi` for the comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

MODEL = "all-MiniLM-L6-v2"
SERVERS = ("tokprune", "sentence-transformers")
WORDS = """
    time year people way day man thing woman life child world school state family student group
    country problem hand part place case week company system program question work government
    number night point home water room mother area money story fact month lot right study book
""".split()  # noqa: SIM905
# Special tokens that every text has.
_SPECIAL = 2
_START_SECONDS = 120.0


@dataclass
class Load:
    """What a number of clients saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    tokens: int = 0
    cpu_seconds: float | None = None

    def line(self) -> str:
        """Throughput and latency of the requests that were answered."""
        ordered = sorted(self.latencies)
        answered = len(ordered)
        if not answered:
            return f"nothing answered: {self.statuses}"
        others = {code: count for code, count in self.statuses.items() if code != 200}
        return (
            f"{answered / self.seconds:8.1f} requests/s {self.tokens / self.seconds:9.0f} tokens/s"
            f"   p50 {1000 * ordered[answered // 2]:8.2f} ms"
            f"   p99 {1000 * ordered[min(answered - 1, int(0.99 * answered))]:8.2f} ms"
            + self._cpu()
            + (f"   not answered {others}" if others else "")
        )

    def _cpu(self) -> str:
        if self.cpu_seconds is None:
            return ""
        return f"   {1000 * self.cpu_seconds / (self.tokens / 1000):7.1f} CPU ms/1000 tokens"


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def text_of(tokens: int, rng: random.Random) -> str:
    """A text of so many tokens, special ones included."""
    return " ".join(rng.choices(WORDS, k=max(1, tokens - _SPECIAL)))


def lengths(shortest: int, longest: int, rng: random.Random) -> Iterator[int]:
    """Lengths, spread evenly over their logarithm."""
    while True:
        yield round(math.exp(rng.uniform(math.log(shortest), math.log(longest))))


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, body: bytes
) -> tuple[int, float]:
    """One request over an open connection; its status and the seconds to wait after a refusal."""
    writer.write(
        b"POST /embed HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (host.encode(), len(body), body)
    )
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(size)
    _, told, wait = head.partition(b"retry-after:")
    return int(head.split(b" ", 2)[1]), float(wait.split(b"\r\n")[0]) if told else 0.0


async def client(
    url: str, seed: int, span: tuple[int, int], begin: float, end: float, load: Load
) -> None:
    """Ask, wait, ask again; counts what is answered between ``begin`` and ``end``."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    rng = random.Random(seed)
    wanted = lengths(*span, rng)
    while time.perf_counter() < end:
        tokens = next(wanted)
        body = json.dumps({"inputs": text_of(tokens, rng)}).encode()
        started = time.perf_counter()
        status, wait = await post(reader, writer, parts.netloc, body)
        now = time.perf_counter()
        if begin <= now < end:
            load.statuses[status] = load.statuses.get(status, 0) + 1
            if status == 200:
                load.latencies.append(now - started)
                load.tokens += tokens
        await asyncio.sleep(wait)
    writer.close()


async def measure(
    url: str, clients: int, seconds: float, span: tuple[int, int], pid: int | None
) -> Load:
    """Load from so many clients, after a fifth of the time to get going."""
    load = Load(seconds)
    begin = time.perf_counter() + seconds / 5
    running = asyncio.gather(
        *(client(url, seed, span, begin, begin + seconds, load) for seed in range(clients))
    )
    if pid is not None:
        await asyncio.sleep(begin - time.perf_counter())
        before = cpu_seconds(pid)
        await asyncio.sleep(begin + seconds - time.perf_counter())
        load.cpu_seconds = cpu_seconds(pid) - before
    await running
    return load


def command(name: str, port: int, arguments: argparse.Namespace) -> list[str]:
    """How a server is started."""
    if name == "tokprune":
        own = ["-m", "tokprune_rt.cli", "serve", arguments.model, "--port", str(port)]
        return [
            *(sys.executable, *own),
            *("--threads", str(arguments.threads), "--precision", arguments.precision),
        ]
    own = ["--baseline", str(port), "--model", arguments.model]
    return [sys.executable, __file__, *own, "--threads", str(arguments.threads)]


@contextmanager
def server(name: str, arguments: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """A server's URL and process once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command(name, port, arguments), stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(url + "/health"):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{name} does not start") from None
                time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def baseline(port: int, model: str, threads: int) -> None:
    """sentence-transformers behind FastAPI, as its users write it."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer

    from tokprune_rt.loader import resolve

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(str(resolve(model)), device="cpu")
    app = FastAPI()

    class Body(BaseModel):
        inputs: str | list[str]

    def embed(body: Body) -> list[list[float]]:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        found: list[list[float]] = encoder.encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        ).tolist()
        return found

    # The annotation is a local class, which a string could not name.
    embed.__annotations__["body"] = Body
    app.post("/embed")(embed)
    app.get("/health")(lambda: {})
    uvicorn.run(app, port=port, log_level="error")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--lengths", type=int, nargs=2, default=(8, 512), metavar=("MIN", "MAX"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32", help="of tokprune")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--baseline", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.baseline:
        baseline(arguments.baseline, arguments.model, arguments.threads)
        return

    def report(name: str, url: str, pid: int | None = None) -> None:
        span = tuple(arguments.lengths)
        for count in arguments.clients:
            load = asyncio.run(measure(url, count, arguments.seconds, span, pid))
            print(f"{name:22} {count:4} clients {load.line()}", flush=True)

    if arguments.url:
        report(arguments.url, arguments.url)
        return
    for name in arguments.servers:
        with server(name, arguments) as (url, pid):
            report(name, url, pid)


if __name__ == "__main__":
    main()
