"""`tokprune embed`: a long job, from a file of texts to a file of vectors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tokprune_rt.cli.console import err, job_bar, note_line
from tokprune_rt.cli.options import (
    BatchSizeOption,
    ModelArgument,
    NormalizeOption,
    PolicyOption,
    PrecisionOption,
    PresetOption,
    ProfileOption,
    PromptNameOption,
    SetOption,
    ThreadsOption,
    load_model,
    policy_label,
)


def embed(
    model: ModelArgument,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="FILE.jsonl, .csv, .tsv or .txt, also with .gz, or FILE.parquet.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUTPUT", help="FILE.npy or FILE.parquet.", show_default=False),
    ],
    column: Annotated[
        str,
        typer.Option("--column", "--field", metavar="NAME", help="Field or column with the text."),
    ] = "text",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="NAME",
            help="A column to copy into a .parquet, repeatable.",
            show_default=False,
        ),
    ] = None,
    normalize: NormalizeOption = False,
    prompt_name: PromptNameOption = None,
    chunk: Annotated[
        int,
        typer.Option(
            "--chunk", metavar="N", help="Texts after which an interruption loses nothing."
        ),
    ] = 1024,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    profile: ProfileOption = None,
    batch_size: BatchSizeOption = 32,
    threads: ThreadsOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Embed a corpus of any size, resuming after interruptions.

    The input is streamed. The output appears when it is complete, with
    OUTPUT.json beside it, which says what made it; until then the work is in
    a hidden folder there. The same command goes on after the last finished
    chunk and ends with the same bytes.

    A .npy has a row per text; a .parquet the columns row (the number), those
    of --keep, and vector, a chunk a row group.

    [bold]Examples[/bold]

      tokprune embed all-MiniLM-L6-v2 corpus.jsonl.gz vectors.npy
      tokprune embed all-MiniLM-L6-v2 posts.csv v.parquet --column body --keep id
    """
    from tokprune_rt.jobs import embed_file
    from tokprune_rt.jobs.embed import check_paths

    check_paths(source, output, column, keep or ())
    loaded = load_model(
        model,
        policy=policy,
        preset=preset,
        settings=settings,
        threads=threads,
        precision=precision,
    )
    start = time.perf_counter()
    try:
        with job_bar("embedding") as count:
            done = embed_file(
                loaded,
                source,
                output,
                column=column,
                keep=keep or (),
                normalize_embeddings=normalize,
                prompt_name=prompt_name,
                profile=profile,
                batch_size=batch_size,
                chunk=chunk,
                on_progress=count,
            )
    except KeyboardInterrupt:
        note_line("the same command goes on after the last finished chunk")
        raise
    if done.found == done.rows:
        note_line(f"{output}: all {done.rows:,} texts were embedded by earlier runs")
        return
    seconds = time.perf_counter() - start
    new = done.rows - done.found
    earlier = f", {done.found:,} of them by earlier runs" if done.found else ""
    err().print(
        f"{done.rows:,} texts x {done.dimension} -> {output}{earlier}  "
        f"({seconds:.1f} s, {new / seconds:,.0f} texts/s, "
        f"policy {policy_label(loaded.policy, profile)})",
        markup=False,
        soft_wrap=True,
    )
