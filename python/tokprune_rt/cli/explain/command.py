"""The command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tokprune_rt.cli.console import err, note_line, out, trimmed
from tokprune_rt.cli.explain import data, page, terminal
from tokprune_rt.cli.options import (
    IsaOption,
    ModelArgument,
    PolicyOption,
    PrecisionOption,
    PresetOption,
    ProfileOption,
    SetOption,
    ThreadsOption,
    load_model,
)
from tokprune_rt.files import atomic_file, check_target


def explain(
    model: ModelArgument,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            help="The text, or - to read it from standard input.",
            show_default=False,
        ),
    ],
    pair: Annotated[
        str | None,
        typer.Option("--pair", metavar="TEXT", help="Second text of a pair.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a self-contained page.", show_default=False
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Write a picture.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    profile: ProfileOption = None,
    threads: ThreadsOption = None,
    isa: IsaOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Show which token of a text left at which layer.

    Every token is coloured by the layer at which it left; bold ones stayed to
    the end. Without colours the text reads {2:like this}: the words in braces
    left at layer 2. Layers count from 0, as in a policy file.

    [bold]Examples[/bold]

      tokprune explain all-MiniLM-L6-v2 "Which words matter?" --preset spatten
      tokprune explain ./pruned-model - --html page.html < text.txt
    """
    for path in (html, png):
        if path is not None:
            check_target(path)
    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "replace").rstrip("\r\n")
    loaded = load_model(
        model,
        policy=policy,
        preset=preset,
        settings=settings,
        threads=threads,
        isa=isa,
        precision=precision,
    )
    found = data.explain_text(loaded, text, pair, profile=profile)
    picture = None
    if png is not None:
        from tokprune_rt.cli.explain.picture import png_bytes

        picture = png_bytes(found)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        with trimmed(out()) as console:
            terminal.show(found, console)
    if not found.pruning_layers and policy is None and preset is None and profile is None:
        note_line(f"{loaded.name} has no policy of its own; try --preset spatten")
    outputs = ((html, page.html_page(found).encode()), (png, picture))
    for path, content in outputs:
        if path is not None and content is not None:
            with atomic_file(path) as file:
                file.write(content)
            err().print(f"wrote {path}", markup=False, soft_wrap=True)
