"""A server on loopback in a thread, and an engine that waits for the test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
import uvloop

from tokprune_rt import Model
from tokprune_rt.policy import preset
from tokprune_rt.serve import Settings, create_app
from tokprune_rt.serve.routing import Server

TIMEOUT = 30.0
# Three layers; every sequence of four tokens or more loses some.
POLICY = preset(
    "quantile",
    layers=3,
    q=0.2,
    profiles={"fast": {"steps": [{"q": 0.5}]}, "faster": {"steps": [{"q": 0.8}]}},
)
# From the first layer on, so that what the first token says at the end differs, too.
EARLY = POLICY | {"steps": [POLICY["steps"][0] | {"layers": [0, 1, 2]}]}


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds; fails after a while."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


class Gate:
    """An engine that does a call only when it is let, and remembers what it was asked for."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._open = threading.Event()
        self.entered = 0
        self.calls: list[list[int]] = []
        self.fail: Callable[[Any], bool] = lambda sequences: False

    def plan(self, profile: str | None) -> Any:
        return self._engine.plan(profile)

    def forward(self, sequences: Any, *arguments: Any, **options: Any) -> Any:
        self.entered += 1
        assert self._open.wait(TIMEOUT)
        self.calls.append([len(item) for item in sequences])
        if self.fail(sequences):
            raise RuntimeError("broken on purpose")
        return self._engine.forward(sequences, *arguments, **options)

    def release(self) -> None:
        """Let this call and all later ones run."""
        self._open.set()

    def hold(self) -> None:
        """Make later calls wait."""
        self._open.clear()


class Running:
    """A server that answers at `url`."""

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.url = url
        self.gates: list[Gate] = []
        self.client = httpx.Client(base_url=url, timeout=TIMEOUT)

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        """JSON of a POST; fails on another status."""
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        return response.json()

    def gate(self) -> Gate:
        """Puts a gate before the first model's engine."""
        (served, *_) = self.server.registry
        gate = Gate(served.model.engine)
        served.worker._engine = gate  # type: ignore[assignment]
        self.gates.append(gate)
        return gate

    def metric(self, line: str) -> float:
        """The value of a sample."""
        text = self.client.get("/metrics").text
        values = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(line + " ")]
        assert len(values) == 1, (line, text)
        return float(values[0])


@contextmanager
def running(models: Mapping[str, Model], **settings: Any) -> Iterator[Running]:
    """A warm server for models; ends with the block."""
    app = create_app(models, Settings(**settings))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    uvicorn_server = uvicorn.Server(config)
    leaked: list[object] = []

    async def serve() -> None:
        await uvicorn_server.serve()
        await asyncio.sleep(0)  # what was cancelled last ends
        leaked.extend(asyncio.all_tasks() - {asyncio.current_task()})

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    try:
        wait_for(lambda: uvicorn_server.started)
        port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
        found = Running(app.state.server, f"http://127.0.0.1:{port}")
        wait_for(lambda: found.server.ready)
        with found.client:
            try:
                yield found
            except BaseException:
                # A test that failed must not leave its server waiting.
                for gate in found.gates:
                    gate.release()
                raise
    finally:
        uvicorn_server.should_exit = True
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "the server did not end"
        assert not leaked


class Parallel:
    """Requests in threads of their own."""

    def __init__(self, run: Running) -> None:
        self._run = run
        self._threads: list[threading.Thread] = []
        self.responses: dict[int, httpx.Response] = {}

    @property
    def sent(self) -> int:
        """Requests sent, answered or not."""
        return len(self._threads)

    def post(self, path: str, **body: Any) -> int:
        """Send without waiting; returns the key of the response."""
        key = len(self._threads)

        def send() -> None:
            self.responses[key] = httpx.post(self._run.url + path, json=body, timeout=TIMEOUT)

        thread = threading.Thread(target=send)
        self._threads.append(thread)
        thread.start()
        return key

    def join(self) -> dict[int, httpx.Response]:
        """Wait for all responses."""
        for thread in self._threads:
            thread.join(TIMEOUT)
        assert len(self.responses) == len(self._threads)
        return self.responses
