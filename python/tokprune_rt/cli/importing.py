"""`tokprune import`: what the published codes wrote, as folders that run here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tokprune_rt.cli.console import out
from tokprune_rt.cli.options import ModelArgument
from tokprune_rt.cli.training_options import OutArgument, need_torch

import_app = typer.Typer(
    name="import", no_args_is_help=True, help="Read what published pruning codes wrote."
)


def _wrote(folder: Path) -> None:
    out().print(f"wrote {folder}", markup=False, soft_wrap=True)


@import_app.command("ltp")
def import_ltp(
    source: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The folder.", show_default=False)
    ],
    target: OutArgument,
    s_pad: Annotated[
        float,
        typer.Option("--s-pad", metavar="N", min=1, help="The length to which training padded."),
    ] = 128,
) -> None:
    """A checkpoint of kssteven418/LTP: weights, thresholds and their rule.

    [bold]Example[/bold]

      tokprune import ltp checkpoints/SST-2 sst2-ltp --s-pad 128
    """
    need_torch()
    from tokprune_rt.train import import_ltp as read

    _wrote(read(source, target, s_pad))


@import_app.command("top")
def import_top(
    model: ModelArgument,
    masks: Annotated[
        Path, typer.Argument(metavar="MASKS", help="The run's zs.pt.", show_default=False)
    ],
    target: OutArgument,
    task: Annotated[
        Literal["cls", "tokens"],
        typer.Option("--task", help="tokens for taggers and question answering."),
    ] = "cls",
) -> None:
    """The masks of a ToP run (microsoft/Moonlit), on a model of its weights.

    The published masks assume that padding and dropped tokens vote, which
    they do not here: measure the quality again with `tokprune evaluate`.

    [bold]Example[/bold]

      tokprune import top ./mrpc-weights zs.pt mrpc-top
    """
    need_torch()
    from tokprune_rt.train import import_top as read

    _wrote(read(model, masks, target, task))


@import_app.command("lat")
def import_lat(
    model: ModelArgument,
    lengths: Annotated[
        Path,
        typer.Argument(
            metavar="LENGTHS",
            help="JSON: tokens left after each layer, or an object of such lists.",
            show_default=False,
        ),
    ],
    target: OutArgument,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            metavar="N",
            min=1,
            help="The input length that the counts refer to; default: they are absolute.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Length configurations of LAT, each a profile.

    [bold]Example[/bold]

      tokprune import lat ./squad-weights lengths.json squad-lat --max-length 384
    """
    need_torch()
    from tokprune_rt.train import import_lat as read

    _wrote(read(model, lengths, target, max_length))
