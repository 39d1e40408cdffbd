"""A server process."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import uvicorn

from tokprune_rt.serve.app import create_app
from tokprune_rt.serve.settings import Settings

if TYPE_CHECKING:
    from tokprune_rt.model import Model

_BACKLOG = 2048
# Longer than the minute after which load balancers give an idle connection up, so that none of
# them sends a request into a connection that this end is closing.
_KEEP_ALIVE_SECONDS = 75


class _Server(uvicorn.Server):
    """Says that it is not ready as soon as it is told to end."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        app: Any = self.config.app
        app.state.server.draining = True
        super().handle_exit(sig, frame)


def run(
    models: Mapping[str, Model],
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
) -> None:
    """Serve models until SIGTERM or SIGINT; then finish what was accepted and return.

    Args:
        models: name -> model.
        settings: limits and choices.
        host: address to listen on; the default takes connections of this machine only.
        port: port to listen on.

    Raises:
        ValueError: as `create_app`.
        OSError: the address cannot be used.
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
    with _listening(host, port) as listener:
        _Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"{host}:{port} cannot be listened on: {error.strerror}") from error
