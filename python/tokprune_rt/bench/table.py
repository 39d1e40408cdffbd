"""The report for readers: a terminal table and Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokprune_rt.bench.models import SHAPES
from tokprune_rt.bench.report import BenchReport, BenchRow

if TYPE_CHECKING:
    from rich.table import Table

_HEADER = (
    "engine",
    "mode",
    "ms",
    "p99",
    "vs best peer",
    "vs best unsorted",
    "vs dense",
    "GMACs",
    "max diff",
    "cosine",
)


_NARROW_HEADER = (
    "engine",
    "mode",
    "ms",
    "p99",
    "vs best\npeer",
    "vs un-\nsorted",
    "vs\ndense",
    "MACs",
    "max\ndiff",
    "cosine",
)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _cells(row: BenchRow) -> tuple[str, ...]:
    cosine = ""
    if row.cosine_mean is not None and row.cosine_min is not None:
        cosine = f"{row.cosine_mean:.4f} (min {row.cosine_min:.3f})"
    return (
        row.engine,
        row.mode,
        milliseconds(row.median_ms),
        milliseconds(row.p99_ms),
        _times(row.vs_best_peer),
        _times(row.vs_best_arrival),
        _times(row.vs_dense),
        f"{row.macs / 1e9:.2f} ({row.macs_ratio:.0%})",
        "" if row.max_diff is None else f"{row.max_diff:.0e}",
        cosine,
    )


def _narrow(row: BenchRow) -> tuple[str, ...]:
    cells = list(_cells(row))
    cells[1] = row.mode.removeprefix("padded, ")
    cells[7] = f"{row.macs_ratio:.0%}"
    cells[9] = "" if row.cosine_mean is None else f"{row.cosine_mean:.3f}"
    return tuple(cells)


def milliseconds(value: float) -> str:
    """``value`` with three digits or so."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _title(shape: str, rows: list[BenchRow]) -> str:
    first = rows[0]
    return f"{SHAPES[shape].label} {first.workload} ({first.tokens:,} tokens)"


def _used_columns(rows: list[tuple[str, ...]]) -> list[int]:
    return [i for i in range(len(_HEADER)) if any(row[i] for row in rows)]


def caption(report: BenchReport) -> str:
    """Machine and settings in one line, then what did not run."""
    env = report.environment
    loads = env["load_average_at_start"], env["load_average_at_end"]
    parts = [
        f"{env['cpu']}, {env['threads']} threads each, fp32, {env['isa']}; "
        f"up to {env['rounds']} rounds or {env['limit_s']:g} s for each workload; "
        f"load average {loads[0]} to {loads[1]}"
    ]
    parts += [f"{name}: {why}" for name, why in report.skipped.items()]
    return "\n".join(parts)


def build(report: BenchReport) -> Table:
    """All rows in one table that fits 80 columns, a section for each shape and workload."""
    from rich import box
    from rich.table import Table

    cells = {id(row): _narrow(row) for row in report.rows}
    columns = _used_columns(list(cells.values()))
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        caption=caption(report),
        caption_justify="left",
    )
    for i in columns:
        table.add_column(_NARROW_HEADER[i], justify="right" if i > 1 else "left", no_wrap=True)
    for (shape, workload), rows in report.groups():
        table.add_row(f"[bold]{SHAPES[shape].label}[/bold]", f"[bold]{workload}[/bold]")
        for row in rows:
            style = "" if row.is_peer else "green"
            table.add_row(*(cells[id(row)][i] for i in columns), style=style)
        table.add_section()
    return table


def _command(report: BenchReport, row: BenchRow) -> str:
    threads = report.environment["threads"]
    return f"tokprune bench --shape {row.shape} --workload {row.workload} --threads {threads}"


def markdown(report: BenchReport) -> str:
    """All rows as Markdown tables, under each the command that measures it alone."""
    lines: list[str] = []
    for (shape, _), rows in report.groups():
        cells = [_cells(row) for row in rows]
        columns = _used_columns(cells)
        lines += ["", f"**{_title(shape, rows)}**", ""]
        lines.append("| " + " | ".join(_HEADER[i] for i in columns) + " |")
        lines.append("|" + "|".join("---" if i < 2 else "--:" for i in columns) + "|")
        lines += ["| " + " | ".join(row[i] for i in columns) + " |" for row in cells]
        lines += ["", f"`{_command(report, rows[0])}`"]
    lines += ["", *(f"{line}  " for line in caption(report).splitlines())]
    lines += [f"{name}: {note}  " for name, note in report.engines.items()]
    return "\n".join(lines).strip() + "\n"
