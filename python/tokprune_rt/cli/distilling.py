"""`tokprune distil`: an embedding model that gives its own vectors from fewer rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tokprune_rt.cli.console import out, trimmed
from tokprune_rt.cli.options import (
    PolicyOption,
    PresetOption,
    SetOption,
    ThreadsOption,
    policy_source,
)
from tokprune_rt.cli.training import prepare, resumable, say
from tokprune_rt.cli.training_options import (
    BatchOption,
    Bf16Option,
    ConfigOption,
    DeviceOption,
    LengthOption,
    OutArgument,
    PatienceOption,
    SeedOption,
    SourceArgument,
    data_file,
    number,
)

if TYPE_CHECKING:
    from tokprune_rt.train import Distilled

_KINDS = ".txt (one a line), .jsonl, .csv, .tsv, also with .gz, or .parquet."


def distil(
    source: SourceArgument,
    target: OutArgument,
    texts: Annotated[Path, data_file("--texts", f"Texts like those to come: {_KINDS}")],
    held_out: Annotated[
        Path | None,
        data_file("--dev", "Texts to choose by and to report on; default: some of --texts."),
    ] = None,
    column: Annotated[
        str,
        typer.Option("--column", "--field", metavar="NAME", help="Field or column with the text."),
    ] = "text",
    macs: Annotated[
        float,
        number(
            "--target-macs",
            "Work that is left, of the dense model's, where no policy is given.",
            min=0,
            max=1,
        ),
    ] = 0.5,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    profiles: Annotated[
        str | None,
        typer.Option(
            "--profiles",
            metavar="A,B",
            help="Those of the policy to serve beside its own numbers; default: all.",
            show_default=False,
        ),
    ] = None,
    max_length: LengthOption = None,
    epochs: Annotated[int, number("--epochs", "Passes over the texts.", min=1)] = 1,
    steps: Annotated[
        int | None, number("--steps", "Instead: steps, on a sample if that is enough.", min=1)
    ] = None,
    rate: Annotated[float, number("--rate", "Learning rate.")] = 1e-4,
    dense_share: Annotated[
        float,
        number(
            "--dense-share",
            "Of the steps without a policy, so that dense vectors stay.",
            min=0,
            max=1,
        ),
    ] = 0.1,
    batch_size: BatchOption = 32,
    seed: SeedOption = 0,
    patience: PatienceOption = 0,
    bf16: Bf16Option = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    config: ConfigOption = None,
) -> None:
    """Teach an embedding model its own vectors under a policy, without labels.

    MODEL is an embedding model and its own teacher: pruned vectors move
    towards its dense ones, so that an index made of those stays good. At
    every step a profile of the policy is drawn; one model serves them all.

    The policy is --policy, --preset or that of MODEL's folder. Without any it
    merges similar tokens down to --target-macs, at the layers where that
    costs least.

    OUT is a folder of the same kind, which other software loads dense. A
    checkpoint is written every minute; an interrupted run goes on when the
    same command is given again.

    [bold]Examples[/bold]

      tokprune distil all-MiniLM-L6-v2 half --texts corpus.jsonl --max-length 256
      tokprune distil all-MiniLM-L6-v2 mine --texts corpus.txt \\
          --policy calibrated --steps 500
    """
    prepare(device, threads)
    from tokprune_rt.jobs.reading import Source
    from tokprune_rt.train import DistilRun, DistilSchedule, Settings
    from tokprune_rt.train import distil as recipe

    def read(path: Path) -> list[str]:
        return [row.text for row in Source(path, column, ()).rows()]

    run = DistilRun(
        source,
        target,
        read(texts),
        None if held_out is None else read(held_out),
        policy_source(source, policy, preset, settings),
        macs,
        None
        if profiles is None
        else [name.strip() for name in profiles.split(",") if name.strip()],
        max_length,
        Settings(batch_size=batch_size, seed=seed, patience=patience, bf16=bf16, device=device),
        say,
    )
    schedule = DistilSchedule(epochs=epochs, steps=steps, rate=rate, dense=dense_share)
    with resumable(target):
        result = recipe(run, schedule)
    with trimmed(out()) as console:
        console.print(_table(result))
    out().print(f"wrote {result.folder}", markup=False, soft_wrap=True)


def _table(result: Distilled) -> Table:
    """Cosines of held-out texts to the dense vectors of the model before, before and after."""
    table = Table(box=None, pad_edge=False)
    table.add_column("profile")
    for name in ("MACs", "cosine before", "after", "5th pct. before", "after", "nearest 10"):
        table.add_column(name, justify="right")
    for row in result.rows:
        values = (row.before.value, row.after.value, row.before.low, row.after.low, row.after.index)
        shown = (f"{value:.4f}" for value in values)
        table.add_row(row.profile, f"{row.macs:.0%}", *shown)
    return table
