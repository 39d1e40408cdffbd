"""A server process."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import uvicorn

from tokprune_rt.serve.app import create_app
from tokprune_rt.serve.routing import Server
from tokprune_rt.serve.settings import Settings

if TYPE_CHECKING:
    from tokprune_rt.model import Model

_BACKLOG = 2048
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Longer than the minute after which load balancers give an idle connection up, so that none of
# them sends a request into a connection that this end is closing.
_KEEP_ALIVE_SECONDS = 75


class _Server(uvicorn.Server):
    """Says that it is not ready as soon as it is told to end, and what it waits for then. Ends
    by itself when a model could not be warmed up."""

    def __init__(self, config: uvicorn.Config, server: Server, say: Callable[[str], None]) -> None:
        super().__init__(config)
        self._server = server
        self._say = say

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._server.draining = True
        # uvicorn's own would raise the signal again at the end, when everything is done.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._server.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        count = self._server.open
        self._say(f"stopping: {count} request{'' if count == 1 else 's'} to finish")
        await super().shutdown(sockets)


def run(
    models: Mapping[str, Model],
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve models until SIGTERM or SIGINT; then finish what was accepted and return.

    A second SIGINT returns at once.

    Args:
        models: name -> model.
        settings: limits and choices.
        host: address to listen on; the default takes connections of this machine only.
        port: port to listen on.
        say: gets lines for people: when the address is open, and when the server is told to end.

    Raises:
        ValueError: as `create_app`.
        OSError: the address cannot be used.
        TokpruneError: a model could not be warmed up.
    """
    chosen = settings or Settings()
    app = create_app(models, chosen)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, int(chosen.timeout_s) + 1),
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for served in app.state.server.registry:
        if chosen.slo_ms is not None and len(served.adaptive.levels) == 1:
            say(f"{served.name} has no profile that prunes harder, so that slo_ms changes nothing")
    with _listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        say(f"{', '.join(models)} at http://{shown}:{port}")
        if host not in _LOOPBACK and chosen.api_key is None:
            say(f"whoever reaches {shown}:{port} can use this server; --api-key KEY asks for a key")
        _Server(config, app.state.server, say).run(sockets=[listener])
    if app.state.server.failure is not None:
        raise app.state.server.failure


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # Python adds the address to the system's words; a name that is unknown has no errno.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise OSError(f"{host}:{port} cannot be listened on: {reason}") from error
