"""Options of the commands that read labelled texts or train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokprune_rt.cli.training_config import read_config
from tokprune_rt.errors import how_to_install

_DATA = "Data"
LOOP = "Training"

SourceArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="The model to start from.", show_default=False)
]
OutArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)
]


def data_file(name: str, text: str) -> Any:
    return typer.Option(name, metavar="FILE", help=text, rich_help_panel=_DATA, show_default=False)


KINDS = (
    ".tsv, .csv, .jsonl, .conll, SQuAD's .json, each also .gz, hf:NAME\\[/CONFIG]:SPLIT or a "
    "folder that datasets' save_to_disk wrote."
)
TrainOption = Annotated[str, data_file("--train", f"Examples to learn from: {KINDS}")]
DevOption = Annotated[str, data_file("--dev", "Examples to choose by, likewise.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML with options by their long names without dashes before them; options of the "
        "command line win.",
        is_eager=True,
        callback=read_config,
        show_default=False,
    ),
]
TextOption = Annotated[
    str,
    typer.Option(
        "--text",
        metavar="COLUMN",
        help="Column of the text, or of the list of words: its name, or its number from 0 in a "
        "file without a header.",
        rich_help_panel=_DATA,
    ),
]
PairOption = Annotated[
    str | None,
    typer.Option(
        "--pair",
        metavar="COLUMN",
        help="Column of the second text of a pair.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
LabelOption = Annotated[
    str,
    typer.Option(
        "--label",
        metavar="COLUMN",
        help="Column of the label, or of the list of tags.",
        rich_help_panel=_DATA,
    ),
]
RegressionOption = Annotated[
    bool, typer.Option("--regression", help="Labels are numbers.", rich_help_panel=_DATA)
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="accuracy (default), f1 of the last label in order, matthews; of a regression "
        "spearman (default) or pearson; of rankings map or mrr; of tags entity-f1 or accuracy; "
        "of answers f1 or exact.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
LengthOption = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        metavar="N",
        min=8,
        help="Tokens to which texts are cut; default: the model's limit.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
FinetunePolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="JSON of a policy under which the weights learn, and which is written beside them; "
        "default: dense.",
        rich_help_panel=LOOP,
        show_default=False,
    ),
]
BatchOption = Annotated[
    int,
    typer.Option("--batch-size", metavar="N", min=1, help="Of a step.", rich_help_panel=LOOP),
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, help="Of everything.", rich_help_panel=LOOP)
]
Bf16Option = Annotated[
    bool | None,
    typer.Option(
        "--bf16/--fp32",
        help="Products of the steps; default: bf16 on CPUs with AMX, AMD CPUs with AVX512-BF16 and "
        "accelerators that have it.",
        rich_help_panel=LOOP,
        show_default=False,
    ),
]
PatienceOption = Annotated[
    int,
    typer.Option(
        "--patience",
        metavar="N",
        min=0,
        help="End fine-tuning and hard epochs after so many without a better dev score; 0: never.",
        rich_help_panel=LOOP,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="cpu, cuda ...", rich_help_panel=LOOP),
]


def number(name: str, text: str, **limits: Any) -> Any:
    return typer.Option(name, metavar="X", help=text, rich_help_panel=LOOP, **limits)


def need_torch() -> None:
    """ImportError that says what to install, unless training can be imported."""
    try:
        import tokprune_rt.train  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{error}; training needs PyTorch and transformers: {how_to_install('train')}"
        ) from error
