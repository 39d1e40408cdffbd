"""A server process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import uvicorn

from tokprune_rt.serve.app import create_app
from tokprune_rt.serve.settings import Settings

if TYPE_CHECKING:
    from tokprune_rt.model import Model


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
    config = uvicorn.Config(
        create_app(models, chosen),
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(chosen.timeout_s) + 1),
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = _Server(config)
    server.run()
    if not server.started:
        raise OSError(f"{host}:{port} cannot be listened on")
