"""`tokprune calibrate`: a policy for one's own texts, without labels and without training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tokprune_rt.cli.console import err, note_line, out, trimmed
from tokprune_rt.cli.options import ModelArgument, PrecisionOption, ThreadsOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokprune_rt.calibration import Calibration
    from tokprune_rt.tokenizer import TextOrPair


def calibrate(
    model: ModelArgument,
    texts: Annotated[
        Path,
        typer.Option(
            "--texts",
            metavar="FILE",
            help="Texts like those to come: .txt (one a line), .jsonl, .csv, .tsv, also with .gz, "
            "or .parquet.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where the policy is written; default: the model's name with -calibrated.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str,
        typer.Option("--column", "--field", metavar="NAME", help="Field or column with the text."),
    ] = "text",
    pair: Annotated[
        str | None,
        typer.Option(
            "--pair",
            metavar="NAME",
            help="Field or column with the second text: a reranker's document, whose query stays.",
            show_default=False,
        ),
    ] = None,
    target_speedup: Annotated[
        float | None,
        typer.Option(metavar="X", help="Be this many times as fast as dense.", show_default=False),
    ] = None,
    min_quality: Annotated[
        float | None,
        typer.Option(
            metavar="Q",
            help="Keep this mean cosine to the dense embeddings, or this share of a classifier's "
            "decisions; 0.98 if nothing is asked for.",
            show_default=False,
        ),
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS", help="Milliseconds for a text in a call of its own.", show_default=False
        ),
    ] = None,
    sample: Annotated[
        int, typer.Option(metavar="N", help="Texts to draw; two thirds only verify.")
    ] = 300,
    budget: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="End the search after this time.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draw.")] = 0,
    threads: ThreadsOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Find a policy for your own texts: no labels, no training.

    Kinds of policies race, the best one is searched layer by layer, and what
    is written was verified on texts that the search has not seen: quality
    against the dense model, and time on this machine.

    FOLDER gets token_policy.json with profiles, report.md, report.json and
    pareto.png (with matplotlib). An interrupted run goes on where it stopped.

    [bold]Examples[/bold]

      tokprune calibrate all-MiniLM-L6-v2 --texts corpus.txt --target-speedup 1.5
      tokprune calibrate reranker --texts p.jsonl --column query --pair doc
      tokprune embed all-MiniLM-L6-v2 corpus.txt vectors.npy \\
          --policy all-MiniLM-L6-v2-calibrated
    """
    from tokprune_rt import load
    from tokprune_rt.calibration import Settings
    from tokprune_rt.calibration import calibrate as run
    from tokprune_rt.jobs.reading import Source
    from tokprune_rt.policy import find_policy, policy_hash
    from tokprune_rt.records import text_of

    settings = Settings(target_speedup, min_quality, latency_ms, sample, budget, seed)
    source = Source(texts, column, () if pair is None else (pair,))
    loaded = load(model, "off", precision=precision, threads=threads)
    # Not "calibrated", which as a policy means the one that comes with the package.
    folder = output or Path(f"{Path(model).name}-calibrated")
    before = find_policy(folder)
    begin = time.monotonic()

    def tell(line: str) -> None:
        err().print(f"{time.monotonic() - begin:6.0f} s  {line}", markup=False, soft_wrap=True)

    def read() -> Iterator[TextOrPair]:
        for row in source.rows():
            if pair is None:
                yield row.text
            else:
                (value,) = row.kept
                # Parquet's values stay Arrow's, as arrays of one.
                value = value[0].as_py() if source.format == "parquet" else value
                yield row.text, text_of({pair: value}, pair, source.place(row.number))

    found = run(loaded, read(), folder, settings, tell=tell)
    found.save(folder)
    if before is not None and policy_hash(before) != policy_hash(found.policy):
        note_line(
            f"the policy {policy_hash(before)[:12]} that was in {folder} is replaced by "
            f"{policy_hash(found.policy)[:12]}; vectors of the two do not belong in one index"
        )
    if found.note:
        note_line(found.note)
    with trimmed(out()) as console:
        console.print(_table(found))
    err().print(f"{folder}: policy, report and measurements", markup=False, soft_wrap=True)


def _table(found: Calibration) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("profile")
    vectors = found.chosen.quality.low is not None
    names = ("cosine", "5th pct.", "nearest 10") if vectors else ("agreement", "divergence")
    for name in ("MACs", "as fast", *(["ms/text"] if found.chosen.ms is not None else []), *names):
        table.add_column(name, justify="right")
    for row in found.rows:
        quality = row.quality
        values = (
            (quality.value, quality.low, quality.neighbours)
            if vectors
            else (quality.value, quality.divergence)
        )
        table.add_row(
            row.name,
            f"{row.macs:.0%}",
            f"{row.speedup:.2f}x",
            *([] if row.ms is None else [f"{row.ms:.2f}"]),
            *(f"{value:.3f}" for value in values),
        )
    return table
