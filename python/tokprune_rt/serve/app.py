"""The ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as PathRoute

from tokprune_rt.errors import TokpruneError
from tokprune_rt.serve import openai, playground, tei
from tokprune_rt.serve.errors import ServeError, unhealthy
from tokprune_rt.serve.metrics import CONTENT_TYPE, Metrics
from tokprune_rt.serve.openapi import document
from tokprune_rt.serve.registry import Registry
from tokprune_rt.serve.routing import (
    Route,
    Server,
    check_alive,
    check_started,
    endpoint,
    problem,
    reply,
)
from tokprune_rt.serve.served import Call, Pools, Served
from tokprune_rt.serve.settings import Settings

if TYPE_CHECKING:
    from tokprune_rt.model import Model

LOG = logging.getLogger("tokprune_rt.serve")


async def _live(server: Server, body: None, call: Call) -> Any:
    check_alive(server)
    if server.ready and not server.draining:
        _check_encoders(server)
    return Response(status_code=200)


async def _ready(server: Server, body: None, call: Call) -> Any:
    check_started(server)
    _check_encoders(server)
    return Response(status_code=200)


def _check_encoders(server: Server) -> None:
    if not all(served.worker.alive for served in server.registry):
        raise unhealthy("an encoder's thread has ended")


async def _metrics(server: Server, body: None, call: Call) -> Any:
    return Response(server.metrics.render(), headers={"content-type": CONTENT_TYPE})


_PUBLIC = [
    Route("GET", "/health", _ready, "Whether requests are answered", public=True),
    Route("GET", "/ready", _ready, "Alias of /health", public=True),
    Route("GET", "/live", _live, "Whether the process needs no restart", public=True),
    Route("GET", "/metrics", _metrics, "Prometheus' metrics", public=True),
]


def create_app(models: Mapping[str, Model], settings: Settings | None = None) -> Starlette:
    """An ASGI application that serves models.

    Args:
        models: name -> model; routes without a model's name use the first that fits.
        settings: limits and choices.

    Raises:
        ValueError: no model, or a profile in the settings that a model does not have.
    """
    chosen = settings or Settings()
    metrics = Metrics()
    pools = Pools(len(models))
    served = {name: Served(name, model, chosen, metrics, pools) for name, model in models.items()}
    server = Server(Registry(served), chosen, metrics, pools)
    metrics.in_flight.set_function(lambda: server.open)
    routes = [*tei.ROUTES, *openai.ROUTES, *_PUBLIC]
    if chosen.playground:
        routes += playground.ROUTES
    description = document(routes, chosen.api_key is not None)

    async def schema(server: Server, body: None, call: Call) -> Any:
        return reply(description)

    routes.append(Route("GET", "/openapi.json", schema, "This description", public=True))

    async def not_found(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = f"{request.method} {request.url.path}: {getattr(error, 'detail', 'failed')}"
        headers = getattr(error, "headers", None)
        response = problem(ServeError(status, "NotFound", text), "tei")
        response.headers.update(headers or {})
        return response

    app = Starlette(
        routes=[
            PathRoute(route.path, endpoint(server, route), methods=[route.method])
            for route in routes
        ],
        exception_handlers={HTTPException: not_found},
        lifespan=lambda app: _lifespan(server),
    )
    app.state.server = server
    return app


@contextlib.asynccontextmanager
async def _lifespan(server: Server) -> AsyncIterator[None]:
    """Warm up beside the first requests, which get 503; finish what was accepted at the end."""
    loop = asyncio.get_running_loop()
    warming = asyncio.ensure_future(_warm_up(server))
    yield
    server.draining = True
    warming.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await warming
    for served in server.registry:
        await loop.run_in_executor(None, served.worker.close)
    server.pools.close()


async def _warm_up(server: Server) -> None:
    for served in server.registry:
        try:
            await served.off_loop(served.warm_up)
        except Exception as error:
            LOG.exception("%s could not be warmed up", served.name)
            server.failure = TokpruneError(
                f"{served.name} could not be warmed up: {type(error).__name__}: {error}"
            )
            return
    server.ready = True
    LOG.info('{"event": "ready"}')
