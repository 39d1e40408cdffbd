"""The report for readers: a terminal table and Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokprune_rt.bench.memory import MemoryRow
from tokprune_rt.bench.models import SHAPES
from tokprune_rt.bench.precision import DEFAULT
from tokprune_rt.bench.report import BenchReport, BenchRow
from tokprune_rt.bench.roofline import Ceilings

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class _Column:
    """A heading, the same for 80 columns (None: left out there), and whether it holds words.

    In 80 columns one share stands for two: that of arithmetic or of reading, whichever is larger.
    """

    title: str
    narrow: str | None
    words: bool = False


_COLUMNS = (
    _Column("engine", "engine", words=True),
    _Column("precision", None, words=True),
    _Column("mode", "mode", words=True),
    _Column("ms", "ms"),
    _Column("p99", "p99"),
    _Column("vs best peer", "vs best\npeer"),
    _Column("vs best unsorted", "vs un-\nsorted"),
    _Column("vs dense", "vs\ndense"),
    _Column("GMACs", "MACs"),
    _Column("of GEMM peak", "of\nroof"),
    _Column("of read rate", None),
    _Column("max diff", "max\ndiff"),
    _Column("cosine to fp32", None),
    _Column("pruned to dense", "cosine"),
)
_MEMORY = ("engine", "precision", "load ms", "resident MB", "peak MB")


def milliseconds(value: float) -> str:
    """``value`` with three digits or so."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def engine_label(row: BenchRow | MemoryRow) -> str:
    """The engine, with its precision unless that is fp32."""
    return row.engine if row.precision == DEFAULT else f"{row.engine} {row.precision}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _share(value: float, ceiling: float | None) -> str:
    return "" if not ceiling else f"{value / ceiling:.0%}"


def _ceilings(report: BenchReport) -> Ceilings:
    return Ceilings(**report.environment["ceilings"])


def _cells(row: BenchRow, ceilings: Ceilings, reduced: bool) -> tuple[str, ...]:
    cosine = ""
    if row.cosine_mean is not None and row.cosine_min is not None:
        cosine = f"{row.cosine_mean:.4f} (min {row.cosine_min:.3f})"
    similar = "" if row.cosine_reference is None else f"{row.cosine_reference:.5f}"
    return (
        row.engine if row.held else f"{row.engine}*",
        row.precision if reduced else "",
        row.mode,
        milliseconds(row.median_ms),
        milliseconds(row.p99_ms),
        _times(row.vs_best_peer),
        _times(row.vs_best_arrival),
        _times(row.vs_dense),
        f"{row.macs / 1e9:.2f} ({row.macs_ratio:.0%})",
        _share(row.gflops, ceilings.gflops(row.precision)),
        _share(row.read_gb_s, ceilings.read_gb_s),
        "" if row.max_diff is None else f"{row.max_diff:.0e}",
        similar if reduced else "",
        cosine,
    )


def _narrow(row: BenchRow, ceilings: Ceilings, reduced: bool) -> tuple[str, ...]:
    short = list(_cells(row, ceilings, reduced))
    short[0] = engine_label(row) + ("" if row.held else "*")
    short[2] = row.mode.removeprefix("padded, ")
    short[8] = f"{row.macs_ratio:.0%}"
    short[9] = max(short[9], short[10], key=lambda share: float(share.rstrip("%") or 0))
    if reduced:
        short[11] = ""
    short[13] = "" if row.cosine_mean is None else f"{row.cosine_mean:.3f}"
    return tuple(short)


def _title(shape: str, rows: list[BenchRow]) -> str:
    first = rows[0]
    return f"{SHAPES[shape].label} {first.workload} ({first.tokens:,} tokens)"


def _used_columns(rows: list[tuple[str, ...]]) -> list[int]:
    return [i for i in range(len(_COLUMNS)) if any(row[i] for row in rows)]


def _is_reduced(report: BenchReport) -> bool:
    return any(row.precision != DEFAULT for row in report.rows)


def caption(report: BenchReport) -> str:
    """Machine and settings in one line, then what did not run."""
    env = report.environment
    loads = env["load_average_at_start"], env["load_average_at_end"]
    parts = [
        f"{env['cpu']}, {env['threads']} threads each, {', '.join(env['precisions'])}, "
        f"{env['isa']}; up to {env['rounds']} rounds or {env['limit_s']:g} s for each workload; "
        f"load average {loads[0]} to {loads[1]}",
        _measured(_ceilings(report)),
    ]
    if env["isa_asked"] is None:
        parts.append("other engines use all instructions of the CPU")
    else:
        parts.append(f"other engines are to use no more than {env['isa_asked']}:")
        parts += [f"{name}: {how}" for name, how in env["peer_isa"].items()]
    if any(not row.held for row in report.rows):
        parts.append("* uses more instructions, and is not counted among the peers")
    parts += [f"{name}: {why}" for name, why in report.skipped.items()]
    return "\n".join(parts)


def _measured(ceilings: Ceilings) -> str:
    rates = [f"{name} {rate:.0f} GFLOP/s" for name, rate in ceilings.gemm_gflops.items()]
    return (
        f"measured in this run: GEMM peak ({ceilings.library}) {', '.join(rates)}; "
        f"reading memory {ceilings.read_gb_s:.1f} GB/s"
    )


def build(report: BenchReport) -> Table:
    """All rows in one table that fits 80 columns, a section for each shape and workload."""
    from rich import box
    from rich.table import Table

    ceilings, reduced = _ceilings(report), _is_reduced(report)
    cells = {id(row): _narrow(row, ceilings, reduced) for row in report.rows}
    columns = [i for i in _used_columns(list(cells.values())) if _COLUMNS[i].narrow is not None]
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        caption=caption(report),
        caption_justify="left",
    )
    for i in columns:
        side = _COLUMNS[i]
        table.add_column(side.narrow or "", justify="left" if side.words else "right", no_wrap=True)
    for (shape, workload), rows in report.groups():
        table.add_row(f"[bold]{SHAPES[shape].label}[/bold]", f"[bold]{workload}[/bold]")
        for row in rows:
            style = "" if row.is_peer else "green"
            table.add_row(*(cells[id(row)][i] for i in columns), style=style)
        table.add_section()
    return table


def _memory_cells(row: MemoryRow) -> tuple[str, ...]:
    return (
        row.engine,
        row.precision,
        f"{row.load_ms:.0f}",
        f"{row.resident_mb:.0f}",
        f"{row.peak_mb:.0f}",
    )


def build_memory(report: BenchReport) -> Table:
    """Load time and memory of every engine."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for i, title in enumerate(_MEMORY):
        table.add_column(title, justify="left" if i < 2 else "right", no_wrap=True)
    shape = ""
    for row in report.memory:
        if f"{row.shape} {row.model}" != shape:
            shape = f"{row.shape} {row.model}"
            table.add_section()
            table.add_row(f"[bold]{SHAPES[row.shape].label}[/bold]", f"[bold]{row.model}[/bold]")
        table.add_row(*_memory_cells(row))
    return table


def _command(report: BenchReport, row: BenchRow) -> str:
    env = report.environment
    parts = [f"tokprune bench --shape {row.shape} --workload {row.workload}"]
    parts.append(f"--threads {env['threads']}")
    if env["precisions"] != [DEFAULT]:
        parts += [f"--precision {name}" for name in env["precisions"]]
    if env["isa_asked"]:
        parts.append(f"--isa {env['isa_asked']}")
    parts.append(f"--rounds {env['rounds']} --seconds {env['limit_s']:g}")
    return " ".join(parts)


def _lines(header: list[str], words: int, rows: list[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "|".join("---" if i < words else "--:" for i in range(len(header))) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def markdown(report: BenchReport) -> str:
    """All rows as Markdown tables, under each the command that measures it alone."""
    ceilings, reduced = _ceilings(report), _is_reduced(report)
    lines: list[str] = []
    for (shape, _), rows in report.groups():
        cells = [_cells(row, ceilings, reduced) for row in rows]
        columns = _used_columns(cells)
        header = [_COLUMNS[i].title for i in columns]
        words = sum(_COLUMNS[i].words for i in columns)
        chosen = [tuple(row[i] for i in columns) for row in cells]
        lines += ["", f"**{_title(shape, rows)}**", "", *_lines(header, words, chosen)]
        lines += ["", f"`{_command(report, rows[0])}`"]
    if report.memory:
        header = ["model", *_MEMORY]
        found = [
            (f"{SHAPES[row.shape].label}, {row.model}", *_memory_cells(row))
            for row in report.memory
        ]
        lines += ["", "**Memory and load time**", "", *_lines(header, 3, found)]
    lines += ["", *(f"{line}  " for line in caption(report).splitlines())]
    lines += [f"{name}: {note}  " for name, note in report.engines.items()]
    return "\n".join(lines).strip() + "\n"
