"""`tokprune bench`: this package next to other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokprune_rt.cli.console import err, error_line, out, stages_bar, trimmed
from tokprune_rt.cli.options import ThreadsOption
from tokprune_rt.files import check_target


def bench(
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="NAME",
            help="minilm or bert-base, repeatable; default: both.",
            show_default=False,
        ),
    ] = None,
    workloads: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            metavar="NAME",
            help="Sequences x tokens such as 8x128, mixed for real texts of mixed lengths, or all; "
            "repeatable. Default: a selection that takes some minutes.",
            show_default=False,
        ),
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME",
            help="onnxruntime, openvino, ctranslate2, torch, or none; repeatable. Default: those "
            "that are installed.",
            show_default=False,
        ),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="fp32 (default), bf16x3, bf16, int8 or auto, repeatable. The other engines run at "
            "the same one; bf16x3 competes with fp32.",
            show_default=False,
        ),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(
            "--isa",
            metavar="NAME",
            help="Instruction set of this package, to which the others are held as far as they "
            "can be; see tokprune info.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = None,
    rounds: Annotated[
        int,
        typer.Option("--rounds", metavar="N", min=1, help="Turns of each engine, at most."),
    ] = 15,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            metavar="S",
            min=0,
            help="Time for each workload, after which no round begins; three are made anyway.",
        ),
    ] = 8.0,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, help="Seed of token ids and texts."),
    ] = 0,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also measure load time and memory of each engine.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all results.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write a picture.", show_default=False),
    ] = None,
) -> None:
    """Time padded dense, packed dense and packed pruned next to other engines.

    All engines get the same weights, texts and number of threads, and take
    turns. Results are checked against PyTorch's in fp32 before anything is
    timed. The extra bench installs the other engines.

    [bold]Examples[/bold]

      tokprune bench --shape minilm --workload mixed
      tokprune bench --precision bf16 --precision int8 --shape bert-base
      tokprune bench --peer none --threads 1 --json result.json
    """
    from tokprune_rt.bench import PEERS, SHAPES, VerificationError, run_bench

    if peers and "none" in peers and len(peers) > 1:
        raise ValueError("--peer none excludes every other --peer")
    # A run takes minutes, so that a folder that is not there is better found now.
    for path in (json_file, plot):
        if path is not None:
            check_target(path)
    chosen = [name for name in peers if name != "none"] if peers else list(PEERS)
    try:
        with stages_bar() as stage:
            report = run_bench(
                shapes or list(SHAPES),
                workloads or None,
                chosen,
                threads,
                rounds,
                seed,
                stage,
                precisions or ["fp32"],
                isa,
                memory,
                limit_s=seconds,
            )
    except VerificationError as error:
        error_line(f"nothing was timed, because a result is wrong: {error}")
        raise typer.Exit(1) from error
    with trimmed(out()) as console:
        console.print(report.table())
        if report.memory:
            console.print(report.memory_table())
    for path, save in ((json_file, report.save_json), (plot, report.save_plot)):
        if path is not None:
            save(path)
            err().print(f"wrote {path}", markup=False, soft_wrap=True)
