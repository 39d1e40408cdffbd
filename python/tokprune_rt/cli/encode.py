"""`tokprune encode`: texts of a file to embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokprune_rt.cli.console import err, progress_bar
from tokprune_rt.cli.files import json_line, output_file, read_records
from tokprune_rt.cli.options import (
    BatchSizeOption,
    IsaOption,
    ModelArgument,
    NormalizeOption,
    PolicyOption,
    PrecisionOption,
    PresetOption,
    ProfileOption,
    PromptNameOption,
    SetOption,
    ThreadsOption,
    TruncateOption,
    load_model,
    policy_label,
)
from tokprune_rt.files import atomic_file, check_target

if TYPE_CHECKING:
    from tokprune_rt.outputs import FloatArray
    from tokprune_rt.records import Record

    Write = Callable[[list[Record], FloatArray], None]

# Texts per call of `Model.encode`, which orders them by length: enough to fill batches, few enough
# for a lively progress bar.
_CHUNK = 512
_OUTPUTS = (".npy", ".jsonl")


def encode(
    model: ModelArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="A file, or - for standard input.", show_default=False
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="FILE.npy: float32 array, a row per text. FILE.jsonl, or - for standard output: "
            "the input's records with a field embedding.",
        ),
    ] = "-",
    field: Annotated[
        str,
        typer.Option("--field", "--column", metavar="NAME", help="Field or column with the text."),
    ] = "text",
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="text|jsonl|csv|tsv",
            help="Input format; default: by the file's name, else text.",
            show_default=False,
        ),
    ] = None,
    normalize: NormalizeOption = False,
    prompt_name: PromptNameOption = None,
    truncate: TruncateOption = True,
    policy: PolicyOption = None,
    preset: PresetOption = None,
    settings: SetOption = None,
    profile: ProfileOption = None,
    batch_size: BatchSizeOption = 32,
    threads: ThreadsOption = None,
    isa: IsaOption = None,
    precision: PrecisionOption = "auto",
) -> None:
    """Turn texts into embeddings.

    INPUT has one text per line (an empty line is an empty text, so that rows
    and lines agree), or is JSON lines, CSV or TSV with the text in --field. A
    file is written completely or not at all.

    [bold]Examples[/bold]

      tokprune encode all-MiniLM-L6-v2 lines.txt -o vectors.npy --normalize
      tokprune encode all-MiniLM-L6-v2 posts.csv --field body --preset topk
      echo "One text" | tokprune encode all-MiniLM-L6-v2 -
    """
    if output != "-" and Path(output).suffix not in _OUTPUTS:
        raise ValueError(
            f"--output {output}: the name must end in {' or '.join(_OUTPUTS)}, or be -"
        )
    if output != "-":
        check_target(Path(output))
    records = read_records(source, kind, field)
    loaded = load_model(
        model,
        policy=policy,
        preset=preset,
        settings=settings,
        threads=threads,
        isa=isa,
        precision=precision,
    )
    # Before any file is made, what is wrong with the options shows here.
    loaded.encode(
        [], profile=profile, batch_size=batch_size, prompt_name=prompt_name, truncate=truncate
    )
    start = time.perf_counter()
    with (
        _writer(output, len(records), loaded.dimension or 0) as write,
        progress_bar(len(records), "encoding") as advance,
    ):
        for first in range(0, len(records), _CHUNK):
            part = records[first : first + _CHUNK]
            try:
                rows = loaded.encode(
                    [record[field] for record in part],
                    normalize_embeddings=normalize,
                    batch_size=batch_size,
                    profile=profile,
                    prompt_name=prompt_name,
                    truncate=truncate,
                )
            except ValueError as error:
                where = f"of the texts {first} to {first + len(part) - 1}, " if first else ""
                raise ValueError(f"{where}{error}") from error
            write(part, rows)
            advance(len(part))
    if output != "-":
        seconds = time.perf_counter() - start
        speed = f", {len(records) / seconds:,.0f} texts/s" if records else ""
        err().print(
            f"{len(records):,} texts x {loaded.dimension} -> {output}  "
            f"({seconds:.1f} s{speed}, policy {policy_label(loaded.policy, profile)})",
            markup=False,
            soft_wrap=True,
        )


@contextmanager
def _writer(output: str, rows: int, dimension: int) -> Iterator[Write]:
    import numpy as np

    if Path(output).suffix == ".npy":
        with atomic_file(Path(output)) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimension)}
            np.lib.format.write_array_header_1_0(file, header)

            def write_rows(records: list[Record], part: FloatArray) -> None:
                file.write(np.ascontiguousarray(part, dtype="<f4").data)

            yield write_rows
        return
    with output_file(output) as stream:

        def write_lines(records: list[Record], part: FloatArray) -> None:
            for record, row in zip(records, part, strict=True):
                # The shortest decimals that read back as the same float32.
                embedding = [float(str(value)) for value in row]
                stream.write(json_line({**record, "embedding": embedding}))
            stream.flush()

        yield write_lines
