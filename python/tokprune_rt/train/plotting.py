"""The picture of an evaluation: score over time."""

from __future__ import annotations

from pathlib import Path

from tokprune_rt.train.evaluating import Evaluation


def draw(found: Evaluation, path: Path) -> None:
    """Write a picture with a point for every row and a line through each precision's.

    Raises ImportError when matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for precision in dict.fromkeys(row.precision for row in found.rows):
        rows = sorted(
            (row for row in found.rows if row.precision == precision), key=lambda row: row.ms
        )
        axes.plot([row.ms for row in rows], [row.score for row in rows], "o-", label=precision)
        for row in rows:
            axes.annotate(row.profile, (row.ms, row.score), fontsize=8)
    axes.set_xlabel(f"ms for {found.examples} texts ({found.tokens} tokens)")
    axes.set_ylabel(f"{found.metric}, points")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
