"""The typer application: its commands, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import tokprune_rt
from tokprune_rt.cli import commands
from tokprune_rt.cli.console import error_line
from tokprune_rt.errors import TokpruneError

# What a wrong file, argument or environment raises; anything else is a defect and keeps its
# traceback.
_EXPECTED = (TokpruneError, ValueError, TypeError, OSError, ImportError, MemoryError)

_DEBUG = "TOKPRUNE_DEBUG"


class Commands(TyperGroup):
    """Turns the library's errors into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            error_line("interrupted")
            raise typer.Exit(130) from None
        except _EXPECTED as error:
            broken = isinstance(error, OSError) and error.errno == errno.EPIPE
            if broken or ctx.params.get("debug"):
                raise
            error_line(_message(error))
            raise typer.Exit(2) from error


def _message(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


app = typer.Typer(
    name="tokprune",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokprune-rt {tokprune_rt.__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar=_DEBUG, help="Show the traceback of an error."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """BERT-family encoders on CPUs, with token pruning that removes tokens for real.

    A MODEL is a folder (Hugging Face or sentence-transformers), the name of
    an installed weight package such as all-MiniLM-L6-v2, or a hub id.

    A policy says what is pruned: the model folder's own token_policy.json, a
    file given with --policy, or a published method chosen with --preset, its
    parameters given with --set.

    Results go to standard output, everything else to standard error. Colours
    are off in a pipe; NO_COLOR=1 and FORCE_COLOR=1 override that.

    [bold]Examples[/bold]

      tokprune demo
      tokprune encode all-MiniLM-L6-v2 lines.txt --output vectors.npy
      tokprune explain all-MiniLM-L6-v2 "Which words matter?" --preset spatten
    """


commands.register(app)


def run() -> None:
    """Run the command line; never returns."""
    code: Any = 0
    try:
        app(prog_name="tokprune")
    except SystemExit as stop:
        code = stop.code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left; python would complain about it once more while it exits.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    sys.exit(code)
