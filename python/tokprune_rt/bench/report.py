"""Results of a benchmark run: rows, JSON, table and plot."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokprune_rt.bench.candidates import OURS
from tokprune_rt.bench.memory import MemoryRow

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 2


@dataclass(frozen=True)
class BenchRow:
    """One engine in one way of running one workload.

    Attributes:
        shape, workload: what ran; ``sequences`` and ``tokens`` count it, without padding.
        model: the folder's name, or the real model's.
        engine, precision, mode: who ran it and how.
        held: False for an engine that uses instructions above the level that was asked for.
        median_ms, p99_ms, best_ms, calls: of the timed calls.
        vs_best_peer: how many times faster than the fastest other engine of the same precision in
            any order of texts; the median over rounds of the ratio within a round. bf16x3 competes
            with fp32. None without other engines; those that are not held do not count.
        vs_best_arrival: the same against those that take the texts in order of arrival.
        vs_peers: the same against each of them, "engine mode" -> ratio.
        vs_dense: how many times faster than this package's packed dense run at this precision.
        macs: multiply-adds of the encoder layers, those on padding included.
        macs_ratio: ``macs`` to those of the texts without padding or pruning.
        gflops: ``macs`` done in the median time, two operations each.
        read_gb_s: the linear layers' weights, read once for each batch in the median time.
        max_diff: largest difference of a hidden state's element to the reference's in fp32; None
            where nothing was compared.
        cosine_reference: least cosine of a sequence's mean hidden state to the reference's.
        checked: what was compared.
        cosine_min, cosine_mean: of mean-pooled embeddings to the dense ones, for real weights.
    """

    shape: str
    workload: str
    model: str
    sequences: int
    tokens: int
    engine: str
    precision: str
    mode: str
    held: bool
    median_ms: float
    p99_ms: float
    best_ms: float
    calls: int
    vs_best_peer: float | None
    vs_best_arrival: float | None
    vs_peers: dict[str, float]
    vs_dense: float | None
    macs: int
    macs_ratio: float
    gflops: float
    read_gb_s: float
    max_diff: float | None
    cosine_reference: float | None
    checked: str
    cosine_min: float | None = None
    cosine_mean: float | None = None

    @property
    def is_peer(self) -> bool:
        return self.engine != OURS


@dataclass(frozen=True)
class BenchReport:
    """All rows of a run with what is needed to read them.

    Attributes:
        environment: machine, threads, instruction set, versions, ceilings.
        engines: what each other engine that ran did, for example which parts were fused.
        skipped: what did not run or was refused a time -> why.
        memory: of each engine, if that was asked for.
    """

    rows: list[BenchRow]
    environment: dict[str, Any]
    engines: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    memory: list[MemoryRow] = field(default_factory=list)

    def groups(self) -> Iterator[tuple[tuple[str, str], list[BenchRow]]]:
        """Rows of each shape and workload."""
        for key, rows in groupby(self.rows, key=lambda row: (row.shape, row.workload)):
            yield key, list(rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "format": "tokprune-bench",
            "version": FORMAT_VERSION,
            "environment": self.environment,
            "engines": self.engines,
            "skipped": self.skipped,
            "rows": [asdict(row) for row in self.rows],
            "memory": [asdict(row) for row in self.memory],
        }

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load_json(cls, path: str | os.PathLike[str]) -> BenchReport:
        """Read what `save_json` wrote; ValueError for another file."""
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data.get("format") != "tokprune-bench" or data.get("version") != FORMAT_VERSION:
            raise ValueError(f"{path} holds no benchmark report of version {FORMAT_VERSION}")
        rows = [BenchRow(**row) for row in data["rows"]]
        memory = [MemoryRow(**row) for row in data["memory"]]
        return cls(rows, data["environment"], data["engines"], data["skipped"], memory)

    def save_plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the speeds; the suffix of ``path`` chooses the format. Needs matplotlib."""
        from tokprune_rt.bench.plot import draw

        draw(self, Path(path))

    def table(self) -> Table:
        """All rows as a table that fits a terminal. Needs rich."""
        from tokprune_rt.bench.table import build

        return build(self)

    def memory_table(self) -> Table:
        """Load times and memory as a table. Needs rich."""
        from tokprune_rt.bench.table import build_memory

        return build_memory(self)

    def markdown(self) -> str:
        """All rows as Markdown tables, one for each shape and workload."""
        from tokprune_rt.bench.table import markdown

        return markdown(self)
