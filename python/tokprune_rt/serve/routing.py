"""A route, and what surrounds every request: limits, time, disconnects, headers, metrics, log."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import anyio
import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tokprune_rt.errors import TokpruneError
from tokprune_rt.serve.errors import (
    Dialect,
    ServeError,
    invalid,
    overloaded,
    timed_out,
    too_large,
    unhealthy,
)
from tokprune_rt.serve.metrics import Metrics
from tokprune_rt.serve.registry import Registry
from tokprune_rt.serve.served import Call, Pools
from tokprune_rt.serve.settings import Settings
from tokprune_rt.serve.tracing import annotate

LOG = logging.getLogger("tokprune_rt.serve")

# What nginx logs for a client that has left; nobody reads it.
_CLIENT_GONE = 499

# Within them a client that has left is not noticed.
_UNWATCHED_SECONDS = 0.02

# How long a client will wait for this request, in milliseconds.
TIMEOUT_HEADER = "x-timeout-ms"


@dataclass
class Server:
    """What the routes share.

    Attributes:
        ready: every model has been warmed up.
        failure: a model could not be warmed up, for good; str() says which.
        draining: the process is ending; what was accepted is finished, nothing more is taken.
        open: requests being worked on.
    """

    registry: Registry
    settings: Settings
    metrics: Metrics
    pools: Pools
    ready: bool = False
    failure: TokpruneError | None = None
    draining: bool = False
    open: int = 0


Handler = Callable[[Server, Any, Call], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """A route: what it takes, who handles it, and whose error bodies it has."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[BaseModel] | None = None
    dialect: Dialect = "tei"
    public: bool = False


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON; numpy's float32 in its shortest form."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, status, headers, media_type="application/json")


def problem(error: ServeError, dialect: Dialect) -> Response:
    """An error as a response."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    # OpenAI has one status for everything that is wrong with a request.
    status = 400 if dialect == "openai" and error.status == 422 else error.status
    return reply(error.body(dialect), status, headers)


def endpoint(server: Server, route: Route) -> Callable[[Request], Awaitable[Response]]:
    """The ASGI-side function of a route."""

    async def serve(request: Request) -> Response:
        started = monotonic()
        call = Call(started, started + server.settings.timeout_s)
        counted = not route.public
        try:
            if counted:
                server.metrics.requests.labels(_method(route)).inc()
                _admit(server, request)
                call.deadline = started + _patience(server, request)
            response = await _guarded(server, route, request, call)
        except ServeError as error:
            response = problem(error, route.dialect)
            server.metrics.failures.labels(error.kind.lower()).inc()
        except ClientDisconnect:
            response = Response(status_code=_CLIENT_GONE)
            server.metrics.failures.labels("disconnected").inc()
        except Exception:
            LOG.exception("%s failed", route.path)
            response = problem(ServeError(500, "Backend", "internal error"), route.dialect)
            server.metrics.failures.labels("internal").inc()
        if counted:
            annotate(call)
            # Books are kept once the response is on its way.
            asyncio.get_running_loop().call_soon(
                _record, server, route, call, response.status_code, monotonic() - started
            )
        return response

    return serve


def _method(route: Route) -> str:
    return route.path.strip("/") or "root"


def _admit(server: Server, request: Request) -> None:
    """ServeError 401, 503 or 429 for a request that is not even read."""
    key = server.settings.api_key
    if key is not None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), key.encode())
        if scheme.lower() != "bearer" or not same:
            raise ServeError(401, "Unauthorized", "the API key is missing or wrong")
    check_started(server)
    limit = server.settings.max_concurrent_requests
    if server.open >= limit:
        raise overloaded(f"model is overloaded: {limit} requests are open", retry_after=1.0)


def check_started(server: Server) -> None:
    """ServeError 503 of a server that does not answer requests, yet or any more."""
    check_alive(server)
    if server.draining:
        raise unhealthy("the server is shutting down")
    if not server.ready:
        raise unhealthy("the server is starting")


def check_alive(server: Server) -> None:
    """ServeError 503 of a server that will never answer requests."""
    if server.failure is not None:
        raise ServeError(503, "Unhealthy", str(server.failure))


def _patience(server: Server, request: Request) -> float:
    """Seconds that a request may take: the server's limit, or less if the client says so."""
    limit, stated = server.settings.timeout_s, request.headers.get(TIMEOUT_HEADER)
    if stated is None:
        return limit
    try:
        seconds = float(stated) / 1000
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise invalid(f"{TIMEOUT_HEADER} must be a positive number, got {stated[:20]!r}")
    return min(limit, seconds)


async def _guarded(server: Server, route: Route, request: Request, call: Call) -> Response:
    """Parse and handle a request; give up when its time is over or its client has left."""
    if route.public:
        return _as_response(await route.handler(server, None, call), call)
    server.open += 1
    watch = _Watch(request)
    body = None
    try:
        deadline = anyio.current_time() + call.deadline - monotonic()
        # A cancelled handler takes its job out of the queue before the request counts as over.
        with anyio.CancelScope(deadline=deadline) as scope:
            body = await _read(request, server.settings.max_body_bytes)
            watch.begin(scope)
            content = await route.handler(server, _parse(route, body), call)
    finally:
        watch.end()
        server.open -= 1
    if not scope.cancelled_caught:
        return _as_response(content, call)
    if watch.gone:
        raise ClientDisconnect
    if body is None:
        raise ServeError(408, "Timeout", "the request's body did not arrive in time")
    raise timed_out(call.deadline - call.arrival)


class _Watch:
    """Cancels a scope when the client leaves.

    Most requests are answered before it looks for the first time, and spared a task of their own.
    """

    def __init__(self, request: Request) -> None:
        self.gone = False
        self._request = request
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, scope: anyio.CancelScope) -> None:
        """Watch from a moment later on; the body must have been read."""
        loop = asyncio.get_running_loop()

        def start() -> None:
            self._task = loop.create_task(self._wait(scope))

        self._timer = loop.call_later(_UNWATCHED_SECONDS, start)

    def end(self) -> None:
        """Watch no longer."""
        for part in (self._timer, self._task):
            if part is not None:
                part.cancel()

    async def _wait(self, scope: anyio.CancelScope) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        scope.cancel()


async def _read(request: Request, limit: int) -> bytes:
    stated = request.headers.get("content-length", "0")
    parts: list[bytes] = []
    size = int(stated) if stated.isdigit() else 0
    if size <= limit:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                break
            parts.append(part)
    if size > limit:
        raise too_large(f"the body is larger than the limit of {limit} bytes")
    return b"".join(parts)


def _parse(route: Route, raw: bytes) -> Any:
    if route.body is None:
        return None
    try:
        return route.body.model_validate_json(raw)
    except ValidationError as error:
        raise validation(error) from error


def validation(error: ValidationError) -> ServeError:
    """What is wrong with a body: its first error, without the text that was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = f"{where}: {first['msg']}" if where else str(first["msg"])
    return invalid(message, str(first["loc"][0]) if first["loc"] else None)


def _as_response(content: Any, call: Call) -> Response:
    if isinstance(content, Response):
        return content
    return reply(content, headers=_headers(call) if call.model else None)


def _headers(call: Call) -> dict[str, str]:
    """What a request cost; the first eight as text-embeddings-inference has them."""
    total = 1000 * (monotonic() - call.arrival)
    return {
        "x-compute-type": "cpu",
        "x-compute-time": f"{total:.3f}",
        "x-compute-characters": str(call.characters),
        "x-compute-tokens": str(call.tokens),
        "x-total-time": f"{total:.3f}",
        "x-tokenization-time": f"{1000 * call.tokenization:.3f}",
        "x-queue-time": f"{1000 * call.queue:.3f}",
        "x-inference-time": f"{1000 * call.inference:.3f}",
        "x-tokprune-model": _header(call.model),
        "x-tokprune-policy": call.policy[:12],
        "x-tokprune-profile": _header(call.profile),
        "x-tokprune-tokens": str(call.tokens),
        "x-tokprune-kept-tokens": str(call.kept),
    }


def _header(value: str) -> str:
    return value.encode("ascii", "replace").decode()


def _record(server: Server, route: Route, call: Call, status: int, seconds: float) -> None:
    metrics = server.metrics
    if status < 400:
        metrics.successes.labels(_method(route)).inc()
        metrics.duration.observe(seconds)
        if call.tokens:
            metrics.tokenization.observe(call.tokenization)
            metrics.queue.observe(call.queue)
            metrics.inference.observe(call.inference)
            metrics.lengths.observe(call.tokens)
    if LOG.isEnabledFor(logging.INFO):
        # No word of the texts.
        entry = {
            "route": route.path,
            "status": status,
            "model": call.model,
            "profile": call.profile,
            "items": call.items,
            "tokens": call.tokens,
            "kept": call.kept,
            "ms": round(1000 * seconds, 3),
            "queue_ms": round(1000 * call.queue, 3),
            "inference_ms": round(1000 * call.inference, 3),
        }
        with contextlib.suppress(OSError):
            LOG.info("%s", json.dumps(entry))
