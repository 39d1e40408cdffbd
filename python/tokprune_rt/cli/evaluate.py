"""`tokprune evaluate`: what a model and its policy are worth on labelled texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tokprune_rt.cli.console import note_line, out, trimmed
from tokprune_rt.cli.options import (
    ModelArgument,
    PolicyOption,
    PresetOption,
    SetOption,
    ThreadsOption,
    policy_source,
)
from tokprune_rt.cli.training_options import (
    KINDS,
    LabelOption,
    MetricOption,
    PairOption,
    TextOption,
    data_file,
    need_torch,
)
from tokprune_rt.files import atomic_file, check_target

if TYPE_CHECKING:
    from tokprune_rt.train import Evaluation


def evaluate(
    model: ModelArgument,
    data: Annotated[str, data_file("--data", f"Labelled data: {KINDS}")],
    text: TextOption = "text",
    pair: PairOption = None,
    label: LabelOption = "label",
    metric: MetricOption = None,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", metavar="NAME", help="Repeatable; default: fp32.", show_default=False
        ),
    ] = None,
    padded_to: Annotated[
        int,
        typer.Option("--padded-to", metavar="N", min=1, help="Length of the padded baseline."),
    ] = 128,
    threads: ThreadsOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all results.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw score over time.", show_default=False),
    ] = None,
) -> None:
    """Score, tokens, multiply-adds and time of a model, dense and pruned.

    Profile "default" is the policy's own numbers. kept: tokens left after the
    last layer. MACs: multiply-adds, of the dense model's at the real lengths.
    as fast: median over rounds in which the profiles take turns. lost: tokens
    of the right answers that are gone after the last layer.

    [bold]Example[/bold]

      tokprune evaluate sst2-ltp --data dev.tsv --text sentence \\
          --precision fp32 --precision int8
    """
    for path in (json_file, plot):
        if path is not None:
            check_target(path)
    need_torch()
    if plot is not None:
        import matplotlib  # noqa: F401 - better missed now than after the measurement
    from tokprune_rt.train import Columns, read_examples
    from tokprune_rt.train import evaluate as measure

    found = measure(
        model,
        read_examples(data, Columns(text, label, pair)),
        policy=policy_source(model, policy, preset, settings),
        metric=metric,
        precisions=precisions or ["fp32"],
        padded_to=padded_to,
        threads=threads,
    )
    if found.note is not None:
        note_line(found.note)
    with trimmed(out()) as console:
        console.print(_table(found))
    if json_file is not None:
        with atomic_file(json_file) as file:
            file.write(json.dumps(found.to_dict(), indent=2).encode())
    if plot is not None:
        from tokprune_rt.train.plotting import draw

        draw(found, plot)


def _table(found: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("precision")
    table.add_column("profile")
    padded = f"padded to {found.padded_to}"
    answers = any(row.answer_lost is not None for row in found.rows)
    lost = ["lost"] if answers else []
    for name in (found.metric, "kept", "MACs", f"of {padded}", "ms", "as fast", *lost):
        table.add_column(name, justify="right")
    for row in found.rows:
        table.add_row(
            row.precision,
            row.profile,
            f"{row.score:.2f}",
            f"{row.kept[-1]:.0%}",
            f"{row.macs:.0%}",
            f"{row.macs / row.macs_padded:.0%}",
            f"{row.ms:.0f}",
            f"{row.speedup:.2f}x",
            *([] if row.answer_lost is None else [f"{row.answer_lost:.1%}"]),
        )
    return table
