"""Clients for benchmarks/serve_load.py: texts of mixed length over connections that stay open."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WORDS = """
    time year people way day man thing woman life child world school state family student group
    country problem hand part place case week company system program question work government
    number night point home water room mother area money story fact month lot right study book
""".split()  # noqa: SIM905
# Special tokens that every text has.
_SPECIAL = 2
# A server that has not answered by then hangs.
_LONGEST_WAIT = 120.0
# Connections that are opened at once; the operating system's queue for them is not endless.
_OPENING = 64

Span = tuple[int, int]


@dataclass(frozen=True)
class Target:
    """A server: where it listens, how it is asked for an embedding and where it puts it."""

    name: str
    url: str
    path: str
    body: Callable[[str], dict[str, Any]]
    vector: Callable[[Any], list[float]]
    pid: int


@dataclass
class Load:
    """What the clients saw within ``seconds``."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    tokens: int = 0
    cpu_seconds: float = 0.0

    def count(self, status: int, latency: float, tokens: int) -> None:
        """One answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.latencies.append(latency)
            self.tokens += tokens

    @property
    def rate(self) -> float:
        """Requests answered with a result, per second."""
        return len(self.latencies) / self.seconds

    @property
    def refused(self) -> int:
        """Requests answered with 429."""
        return self.statuses.get(429, 0)

    @property
    def failed(self) -> dict[int, int]:
        """Every other status than 200 and 429, with its count."""
        return {code: n for code, n in self.statuses.items() if code not in (200, 429)}

    def quantile(self, share: float) -> float:
        """Milliseconds; not a number when nothing was answered."""
        return percentile(self.latencies, share)


def percentile(seconds: list[float], share: float) -> float:
    """Milliseconds within which this share lies."""
    if not seconds:
        return math.nan
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in 10^6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def text_of(tokens: int, rng: random.Random) -> str:
    """A text of so many tokens, special ones included."""
    return " ".join(rng.choices(WORDS, k=max(1, tokens - _SPECIAL)))


def texts(span: Span, rng: random.Random) -> Iterator[tuple[int, str]]:
    """(tokens, text) without end; lengths are spread evenly over their logarithm."""
    while True:
        tokens = round(math.exp(rng.uniform(math.log(span[0]), math.log(span[1]))))
        yield tokens, text_of(tokens, rng)


class Connection:
    """A connection that stays open."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._host = urlsplit(target.url).netloc

    async def open(self) -> None:
        """Connect."""
        parts = urlsplit(self._target.url)
        self._reader, self._writer = await asyncio.open_connection(parts.hostname, parts.port)

    async def post(self, text: str) -> tuple[int, float, bytes]:
        """Ask for a text: the status, the seconds to wait after a refusal, and the body."""
        body = json.dumps(self._target.body(text)).encode()
        head = (
            f"POST {self._target.path} HTTP/1.1\r\nhost: {self._host}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        size = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
        content = await self._reader.readexactly(size)
        _, told, wait = answer.partition(b"retry-after:")
        seconds = float(wait.split(b"\r\n")[0]) if told else 0.0
        return int(answer.split(b" ", 2)[1]), seconds, content

    def close(self) -> None:
        """Close it."""
        self._writer.close()


async def closed_loop(target: Target, clients: int, seconds: float, span: Span) -> Load:
    """So many clients that each wait for an answer before they ask again.

    Counting begins when every client has had an answer, so that the first rush is over. A client
    that is refused waits as long as it was told to.
    """
    load = Load(seconds)
    waiting = clients
    begun = asyncio.Event()
    begin = math.inf

    async def client(seed: int) -> None:
        nonlocal waiting, begin
        connection = Connection(target)
        await connection.open()
        rng = random.Random(seed)
        first = True
        for tokens, text in texts(span, rng):
            started = time.perf_counter()
            status, wait, _ = await asyncio.wait_for(connection.post(text), _LONGEST_WAIT)
            now = time.perf_counter()
            if begin <= now < begin + seconds:
                load.count(status, now - started, tokens)
            elif now >= begin + seconds:
                break
            if first:
                first = False
                waiting -= 1
                if waiting == 0:
                    begin = now
                    begun.set()
            await asyncio.sleep(wait)
        connection.close()

    async def processor() -> None:
        await begun.wait()
        before = cpu_seconds(target.pid)
        await asyncio.sleep(seconds)
        load.cpu_seconds = cpu_seconds(target.pid) - before

    await asyncio.gather(processor(), *(client(seed) for seed in range(clients)))
    return load


async def open_loop(
    target: Target,
    rate: float,
    seconds: float,
    span: Span,
    seed: int = 0,
    each: Callable[[float, int, float], None] = lambda when, status, latency: None,
) -> Load:
    """Requests that come at random moments, ``rate`` a second, whether others are answered or not.

    Latencies count from the moment at which a request was due. ``each`` gets that moment, the
    status and the latency. Returns when all are answered; TimeoutError if one is not.
    """
    load = Load(seconds)
    # The one that has waited longest goes first, so that none waits until the server closes it.
    idle: deque[Connection] = deque()
    opening = asyncio.Semaphore(_OPENING)
    rng = random.Random(seed)
    wanted = texts(span, rng)
    begin = time.perf_counter()

    async def request(due: float, tokens: int, text: str) -> None:
        if idle:
            connection = idle.popleft()
        else:
            connection = Connection(target)
            async with opening:
                await connection.open()
        status, _, _ = await asyncio.wait_for(connection.post(text), _LONGEST_WAIT)
        latency = time.perf_counter() - begin - due
        load.count(status, latency, tokens)
        each(due, status, latency)
        idle.append(connection)

    tasks: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    def done(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if error := task.exception():
            failures.append(error)

    due = rng.expovariate(rate)
    while due < seconds:
        await asyncio.sleep(begin + due - time.perf_counter())
        task = asyncio.create_task(request(due, *next(wanted)))
        tasks.add(task)
        task.add_done_callback(done)
        due += rng.expovariate(rate)
    while tasks:
        await asyncio.wait(tasks)
    if failures:
        raise failures[0]
    for connection in idle:
        connection.close()
    return load
