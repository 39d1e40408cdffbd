"""What a calibration found: measured points, the policy, a report and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokprune_rt.files import atomic_file
from tokprune_rt.policy import Policy, policy_hash

from .judge import Quality


@dataclass(frozen=True)
class Measured:
    """A policy on the held-out texts.

    Attributes:
        macs: multiply-adds, of the dense model's.
        speedup: the dense pass took so many times as long, batches of 32.
        ms: milliseconds for one text in a call of its own, mean over texts; None where not asked.
    """

    name: str
    shares: tuple[float, ...]
    macs: float
    speedup: float
    quality: Quality
    ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        result = {"name": self.name, "macs": self.macs, "speedup": self.speedup}
        if self.ms is not None:
            result["ms"] = self.ms
        return result | {"shares": list(self.shares), **self.quality.to_dict()}


@dataclass(frozen=True)
class Calibration:
    """The result.

    Attributes:
        policy: what to give to `load`.
        rows: the policy's own numbers and its profiles, measured on held-out texts.
        family: the kind of policy that won.
        race: kind -> loss at the multiply-adds of the race, lower is better.
        speeds: length in tokens -> speed-up of a usual policy, where the break-even shows.
        qualities: length in tokens -> quality of the policy's own numbers, whatever `skip_below`.
        facts: model, precision, threads, numbers of texts and tokens, seed, seconds.
        note: what to know about the result, or None.
    """

    policy: Policy
    rows: list[Measured]
    family: str
    race: dict[str, float]
    speeds: dict[int, float]
    qualities: dict[int, float]
    facts: dict[str, Any]
    note: str | None = None

    @property
    def chosen(self) -> Measured:
        """The policy's own numbers."""
        return self.rows[0]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "policy_hash": policy_hash(self.policy),
            "family": self.family,
            "rows": [row.to_dict() for row in self.rows],
            "race": self.race,
            "speeds": {str(length): speed for length, speed in self.speeds.items()},
            "qualities": {str(length): value for length, value in self.qualities.items()},
            "skip_below": self.policy.limits.skip_below,
            "facts": self.facts,
            "note": self.note,
        }

    def save(self, folder: Path) -> None:
        """Write token_policy.json, report.json and report.md, and pareto.png with matplotlib."""
        self.policy.save(folder)
        for name, text in (
            ("report.json", json.dumps(self.to_dict(), indent=2)),
            ("report.md", self.markdown()),
        ):
            with atomic_file(folder / name) as file:
                file.write(text.encode() + b"\n")
        try:
            _draw(self.rows, folder / "pareto.png")
        except ImportError:
            return

    def markdown(self) -> str:
        """The report as a page."""
        facts = self.facts
        columns = ["profile", "MACs", "times as fast"]
        vectors = self.chosen.quality.low is not None
        measures = (
            ["cosine", "5th percentile", "nearest 10", "nearest 10, dense index"]
            if vectors
            else ["agreement", "divergence"]
        )
        timed = self.chosen.ms is not None
        columns += (["ms/text"] if timed else []) + measures
        lines = [
            f"# Calibrated policy for {facts['base_model']}",
            "",
            f"{facts['held_out']} held-out texts ({facts['held_out_tokens']} tokens), "
            f"{facts['precision']}, {facts['threads']} threads, {facts['cpu']}. "
            f"Kind: {self.family}.",
            "",
            "| " + " | ".join(columns) + " |",
            "|---" * len(columns) + "|",
        ]
        for row in self.rows:
            quality = row.quality
            cells = [row.name, f"{row.macs:.0%}", f"{row.speedup:.2f}"]
            if row.ms is not None:
                cells.append(f"{row.ms:.2f}")
            if vectors:
                values = (quality.value, quality.low, quality.neighbours, quality.index)
                cells += [f"{value:.3f}" for value in values]
            else:
                cells += [f"{quality.value:.3f}", f"{quality.divergence:.4f}"]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "MACs: multiply-adds, of the dense model's at the real lengths.", ""]
        speeds = ", ".join(f"{n}: {speed:.2f}" for n, speed in self.speeds.items())
        lines.append(f"Times as fast by tokens per text, 15% leaving every layer: {speeds}.")
        by_length = ", ".join(f"{n}: {value:.3f}" for n, value in self.qualities.items())
        what = "Cosine" if vectors else "Agreement"
        least = self.policy.limits.skip_below
        skipped = f" Texts below {least} tokens run dense." if least else ""
        lines.append(f"{what} by tokens per text: {by_length}.{skipped}")
        race = ", ".join(f"{name} {loss:.4f}" for name, loss in self.race.items())
        lines += ["", f"Loss of the kinds at equal multiply-adds: {race}."]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines)


def _draw(rows: Sequence[Measured], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    ordered = sorted(rows, key=lambda row: row.speedup)
    axes.plot([row.speedup for row in ordered], [row.quality.value for row in ordered], "o-")
    for row in ordered:
        axes.annotate(row.name, (row.speedup, row.quality.value), fontsize=8)
    axes.set_xlabel("times as fast as dense")
    axes.set_ylabel("mean cosine to dense" if rows[0].quality.low is not None else "agreement")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
