"""`tokprune serve`: models behind HTTP."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Annotated

import typer

from tokprune_rt.cli.console import note_line
from tokprune_rt.cli.options import (
    IsaOption,
    PolicyOption,
    PrecisionOption,
    PresetOption,
    SetOption,
    ThreadsOption,
    load_model,
)
from tokprune_rt.errors import how_to_install

_NEEDED = ("starlette", "uvicorn", "pydantic", "orjson", "prometheus_client")
_LOAD = "Load"
_LIMITS = "Limits"


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Models as elsewhere, or NAME=MODEL to choose the name that clients use.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=1, max=65535, help="Port to listen on.")
    ] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="TOKPRUNE_API_KEY",
            help="What clients must send as Authorization: Bearer KEY.",
            show_default=False,
        ),
    ] = None,
    playground: Annotated[
        bool, typer.Option("--playground/--no-playground", help="A page to try the models at /.")
    ] = True,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            help="The profile of requests that name none.",
            rich_help_panel=_LOAD,
            show_default=False,
        ),
    ] = None,
    slo_ms: Annotated[
        float | None,
        typer.Option(
            "--slo-ms",
            metavar="MS",
            help="Move to cheaper profiles while the queue would take longer than this.",
            rich_help_panel=_LOAD,
            show_default=False,
        ),
    ] = None,
    min_profile: Annotated[
        str | None,
        typer.Option(
            "--min-profile",
            metavar="NAME",
            help="The cheapest profile to which --slo-ms may move; default: the cheapest.",
            rich_help_panel=_LOAD,
            show_default=False,
        ),
    ] = None,
    max_batch_tokens: Annotated[
        int,
        typer.Option(
            "--max-batch-tokens",
            metavar="N",
            help="Tokens per call of the encoder.",
            rich_help_panel=_LOAD,
        ),
    ] = 1024,
    max_queue_ms: Annotated[
        float,
        typer.Option(
            "--max-queue-ms",
            metavar="MS",
            help="Refuse a request (429) when more work than this is ahead of it.",
            rich_help_panel=_LOAD,
        ),
    ] = 2000.0,
    max_concurrent_requests: Annotated[
        int,
        typer.Option(
            "--max-concurrent-requests",
            metavar="N",
            help="Open requests; more get 429.",
            rich_help_panel=_LIMITS,
        ),
    ] = 512,
    max_items: Annotated[
        int,
        typer.Option(
            "--max-items", metavar="N", help="Texts per request.", rich_help_panel=_LIMITS
        ),
    ] = 2048,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", metavar="N", help="Tokens per request.", rich_help_panel=_LIMITS
        ),
    ] = 262_144,
    max_body_bytes: Annotated[
        int,
        typer.Option(
            "--max-body-bytes",
            metavar="N",
            help="Size of a request's body.",
            rich_help_panel=_LIMITS,
        ),
    ] = 2_000_000,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout-s",
            metavar="S",
            help="Seconds after which a request ends with 504.",
            rich_help_panel=_LIMITS,
        ),
    ] = 30.0,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    threads: ThreadsOption = None,
    isa: IsaOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Serve models over HTTP.

    Speaks the routes of text-embeddings-inference (/embed, /predict,
    /rerank, /similarity, ...) and OpenAI (/v1/embeddings), and has routes
    for token classification (/tag) and question answering (/answer). GET /
    is a playground, /metrics is for Prometheus. The log goes to standard
    error, a JSON line per request, without its texts.

    [bold]Examples[/bold]

      tokprune serve all-MiniLM-L6-v2
      tokprune serve mini=all-MiniLM-L6-v2 rank=./reranker --port 8081
      tokprune serve ./minilm-pruned --slo-ms 50 --min-profile fast
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"tokprune serve needs {', '.join(missing)}; install it with: {how_to_install('serve')}"
        )
    from tokprune_rt.serve import Settings, run

    limits = Settings(
        api_key=api_key,
        max_batch_tokens=max_batch_tokens,
        max_queue_ms=max_queue_ms,
        max_concurrent_requests=max_concurrent_requests,
        max_items=max_items,
        max_tokens=max_tokens,
        max_body_bytes=max_body_bytes,
        timeout_s=timeout_s,
        profile=profile,
        slo_ms=slo_ms,
        min_profile=min_profile,
        playground=playground,
    )
    named = _named(models)
    loaded = {
        name: load_model(
            source,
            policy=policy,
            preset=preset,
            settings=settings,
            threads=threads,
            isa=isa,
            precision=precision,
        )
        for name, source in named.items()
    }
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("tokprune_rt.serve").setLevel(logging.INFO)
    run(loaded, limits, host=host, port=port, say=note_line)


def _named(models: list[str]) -> dict[str, str]:
    """Name -> model; a path goes by its last part."""
    named: dict[str, str] = {}
    for argument in models:
        name, equals, source = argument.partition("=")
        if not equals or Path(argument).exists():
            source = argument
            name = Path(argument).resolve().name if Path(argument).exists() else argument
        if not name or not source:
            raise ValueError(f"{argument!r}: write MODEL or NAME=MODEL")
        if name in named:
            raise ValueError(f"two models are named {name!r}; give one another with NAME=MODEL")
        named[name] = source
    return named
