"""`tokprune bench`: this package next to other engines."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from tokprune_rt.cli.console import err, out
from tokprune_rt.cli.options import ThreadsOption


def bench(
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="NAME", help="minilm or bert-base; repeatable."),
    ] = None,
    workloads: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            metavar="NAME",
            help="Sequences x tokens such as 8x128, mixed for real texts of mixed length, or all; "
            "repeatable.",
        ),
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME",
            help="onnxruntime, openvino, ctranslate2, torch, or none; repeatable.",
        ),
    ] = None,
    threads: ThreadsOption = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", metavar="N", min=1, help="Timed rounds; the median counts."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all results as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a picture.")
    ] = None,
) -> None:
    """Time padded dense, packed dense and packed pruned next to other engines.

    pip install "tokprune-rt\\[bench]" brings the other engines. Results are
    checked against each other before anything is timed.

    [bold]Examples[/bold]

      tokprune bench --shape minilm --workload mixed
      tokprune bench --peer none --threads 1 --json result.json
    """
    library: Any = import_module("tokprune_rt.bench")
    report = library.run_bench(shapes, workloads, peers, threads, rounds)
    out().print(report.table())
    for path, save in ((json_file, report.save_json), (plot, report.save_plot)):
        if path is not None:
            save(path)
            err().print(f"wrote {path}", markup=False, soft_wrap=True)
