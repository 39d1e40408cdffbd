"""The report as a picture: one panel for each workload."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tokprune_rt.bench.candidates import PACKED, PADDED, PRUNED
from tokprune_rt.bench.models import SHAPES
from tokprune_rt.bench.report import BenchReport, BenchRow
from tokprune_rt.bench.table import engine_label, milliseconds

_OTHER = "#9aa5b1"
_OURS = {PADDED: "#b7dfc4", PACKED: "#56b87a", PRUNED: "#1c7c43"}
_COLUMNS = 3


def draw(report: BenchReport, path: Path) -> None:
    """Write bars of the median times. Raises ValueError for a report without rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = list(report.groups())
    if not groups:
        raise ValueError("the report has no rows to draw")
    columns = min(_COLUMNS, len(groups))
    lines = math.ceil(len(groups) / columns)
    height = 0.6 + 0.28 * max(len(rows) for _, rows in groups)
    figure = Figure(figsize=(4.4 * columns, height * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False)
    for index, panel in enumerate(panels.flat):
        if index < len(groups):
            (shape, workload), rows = groups[index]
            _panel(panel, f"{SHAPES[shape].label} {workload}", rows)
        else:
            panel.set_axis_off()
    env = report.environment
    what = ", ".join(env["precisions"])
    figure.suptitle(
        f"milliseconds per call, {what}, {env['threads']} threads, {env['cpu']}", fontsize=9
    )
    figure.savefig(path, dpi=150)


def _panel(panel: Any, title: str, rows: list[BenchRow]) -> None:
    ordered = rows[::-1]
    places = list(range(len(ordered)))
    bars = panel.barh(
        places,
        [row.median_ms for row in ordered],
        color=[_OTHER if row.is_peer else _OURS[row.mode] for row in ordered],
    )
    labels = [milliseconds(row.median_ms) for row in ordered]
    panel.bar_label(bars, labels, fontsize=7, padding=2)
    panel.set_yticks(places, [_label(row) for row in ordered], fontsize=7)
    panel.tick_params(axis="x", labelsize=7)
    panel.margins(x=0.15)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(title, fontsize=9)


def _label(row: BenchRow) -> str:
    mode = row.mode.partition(", ")[2] if row.is_peer else row.mode
    return f"{engine_label(row)} {mode}".strip()
