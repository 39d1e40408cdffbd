"""Timings and checks of one workload into rows of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokprune_rt.bench.candidates import PACKED, PRUNED, macs_of
from tokprune_rt.bench.checking import Checked
from tokprune_rt.bench.isa import Cap
from tokprune_rt.bench.precision import rival, weight_bytes
from tokprune_rt.bench.report import BenchRow
from tokprune_rt.bench.stage import PeerKey, Stage
from tokprune_rt.bench.timing import Timing
from tokprune_rt.bench.verify import cosines
from tokprune_rt.bench.workloads import Workload
from tokprune_rt.loader.config import EncoderConfig


def encoder_weights(config: EncoderConfig) -> int:
    """Weights of the encoder layers' linear parts."""
    return config.layers * (4 * config.hidden**2 + 2 * config.hidden * config.intermediate)


def make_rows(
    stage: Stage,
    workload: Workload,
    checked: Sequence[Checked],
    timings: Sequence[Timing],
    caps: Mapping[PeerKey, Cap],
) -> list[BenchRow]:
    """One row for each candidate."""
    field = _Field(checked, timings, caps)
    weights = encoder_weights(stage.config) * len(workload.batches())
    dense_macs = macs_of(stage.config, workload.lengths)
    rows = []
    for i, (item, timing) in enumerate(zip(checked, timings, strict=True)):
        entry = item.candidate
        seconds = timing.median_ms / 1e3
        dense = field.dense(entry.precision)
        agreement = item.agreement
        rows.append(
            BenchRow(
                shape=stage.shape.name,
                workload=workload.name,
                model=stage.label,
                sequences=len(workload.sequences),
                tokens=workload.tokens,
                engine=entry.engine,
                precision=entry.precision,
                mode=entry.mode,
                held=field.held(i),
                median_ms=timing.median_ms,
                p99_ms=timing.p99_ms,
                best_ms=timing.best_ms,
                calls=timing.calls,
                vs_best_peer=field.against_best(i),
                vs_best_arrival=field.against_best(i, "arrival"),
                vs_peers=field.against_all(i),
                vs_dense=None if dense is None else timing.times_faster_than(timings[dense]),
                macs=item.macs,
                macs_ratio=item.macs / dense_macs,
                gflops=2 * item.macs / seconds / 1e9,
                read_gb_s=weights * weight_bytes(entry.precision) / seconds / 1e9,
                max_diff=None if agreement is None else agreement.difference,
                cosine_reference=None if agreement is None else agreement.cosine,
                checked=item.how,
                **_cosine(stage, None if dense is None else checked[dense], item),
            )
        )
    return rows


class _Field:
    """Who competes with whom."""

    def __init__(
        self,
        checked: Sequence[Checked],
        timings: Sequence[Timing],
        caps: Mapping[PeerKey, Cap],
    ) -> None:
        self._entries = [item.candidate for item in checked]
        self._timings = timings
        self._caps = caps

    def held(self, i: int) -> bool:
        cap = self._caps.get((self._entries[i].engine, self._entries[i].precision))
        return cap is None or cap.held

    def dense(self, precision: str) -> int | None:
        """This package's dense run."""
        wanted = (precision, PACKED)
        found = (i for i, e in enumerate(self._entries) if (e.precision, e.mode) == wanted)
        return next(found, None)

    def _rivals(self, i: int) -> list[int]:
        precision = rival(self._entries[i].precision)
        return [k for k, e in enumerate(self._entries) if e.is_peer and e.precision == precision]

    def against_best(self, i: int, order: str = "") -> float | None:
        rivals = [
            k for k in self._rivals(i) if self.held(k) and self._entries[k].mode.endswith(order)
        ]
        best = min(rivals, key=lambda k: self._timings[k].median_ms, default=None)
        return None if best is None else self._timings[i].times_faster_than(self._timings[best])

    def against_all(self, i: int) -> dict[str, float]:
        return {
            f"{self._entries[k].engine} {self._entries[k].mode}": self._timings[
                i
            ].times_faster_than(self._timings[k])
            for k in self._rivals(i)
        }


def _cosine(stage: Stage, dense: Checked | None, item: Checked) -> dict[str, Any]:
    if not stage.real or item.candidate.mode != PRUNED or dense is None:
        return {}
    if item.embeddings is None or dense.embeddings is None:
        return {}
    found = cosines(dense.embeddings, item.embeddings)
    return {"cosine_min": float(found.min()), "cosine_mean": float(found.mean())}
