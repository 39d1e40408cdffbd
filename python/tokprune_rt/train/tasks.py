"""What is learned: classes or a number, how it is scored, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from torch.nn import functional

Array = NDArray[np.float64]


def _accuracy(found: Array, wanted: Array) -> float:
    return float((found == wanted).mean())


def _matthews(found: Array, wanted: Array) -> float:
    """Matthews correlation of two classes; 0 when one of the two sides is constant."""
    if found.std() == 0 or wanted.std() == 0:
        return 0.0
    return float(np.corrcoef(found, wanted)[0, 1])


def _f1(found: Array, wanted: Array) -> float:
    """F1 of class 1."""
    right = float(((found == 1) & (wanted == 1)).sum())
    total = float((found == 1).sum() + (wanted == 1).sum())
    return 2 * right / total if total else 0.0


def _correlation(of: Callable[..., Any], found: Array, wanted: Array) -> float:
    """0 when one of the two sides is constant."""
    if found.std() == 0 or wanted.std() == 0:
        return 0.0
    return float(of(found, wanted).statistic)


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "spearman": lambda found, wanted: _correlation(spearmanr, found, wanted),
    "pearson": lambda found, wanted: _correlation(pearsonr, found, wanted),
}
_OF_NUMBERS = ("spearman", "pearson")


@dataclass(frozen=True)
class Task:
    """A sequence classification or, without labels, a regression.

    Attributes:
        labels: the classes in the order of the head's outputs; empty for a regression.
        metric: a name of `METRICS`; scores are given in points, 100 times its value.
    """

    labels: tuple[str, ...]
    metric: str

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; known: {', '.join(METRICS)}")
        if (self.metric in _OF_NUMBERS) != self.is_regression:
            kind = "a regression" if self.is_regression else "a classification"
            raise ValueError(f"metric {self.metric!r} does not fit {kind}")
        if self.metric in ("f1", "matthews") and len(self.labels) != 2:
            raise ValueError(f"metric {self.metric!r} needs 2 classes, found {len(self.labels)}")

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def outputs(self) -> int:
        """Columns of the head."""
        return max(1, len(self.labels))

    def targets(self, labels: Sequence[str]) -> Tensor:
        """Class numbers int64 [n] or values float32 [n]; ValueError names a label not known."""
        if self.is_regression:
            try:
                values = torch.tensor([float(label) for label in labels], dtype=torch.float32)
            except ValueError as error:
                raise ValueError(f"a regression needs numbers as labels: {error}") from error
            if not torch.isfinite(values).all():
                bad = labels[int((~torch.isfinite(values)).nonzero()[0])]
                raise ValueError(f"a regression needs numbers as labels, found {bad!r}")
            return values
        places = {label: index for index, label in enumerate(self.labels)}
        unknown = sorted({label for label in labels if label not in places})
        if unknown:
            raise ValueError(
                f"unknown labels {', '.join(map(repr, unknown[:5]))}; known: "
                f"{', '.join(map(repr, self.labels))}"
            )
        return torch.tensor([places[label] for label in labels])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch: cross-entropy, or the squared error."""
        if self.is_regression:
            return functional.mse_loss(logits.squeeze(-1).float(), targets)
        return functional.cross_entropy(logits.float(), targets)

    def distance(self, logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
        """How far from a teacher's logits: KL at a temperature, or the squared error."""
        if self.is_regression:
            return functional.mse_loss(logits.float(), teacher.float())
        student = functional.log_softmax(logits.float() / temperature, dim=-1)
        target = functional.log_softmax(teacher.float() / temperature, dim=-1)
        parts = functional.kl_div(student, target, log_target=True, reduction="batchmean")
        return parts * temperature**2

    def score(self, logits: NDArray[np.float32], targets: Tensor) -> float:
        """The metric, in points."""
        found = logits[:, 0] if self.is_regression else logits.argmax(axis=1)
        return 100 * METRICS[self.metric](
            np.asarray(found, np.float64), targets.numpy().astype(np.float64)
        )


def task_of(labels: Sequence[str], regression: bool, metric: str | None) -> Task:
    """The task of a training set; classes in alphabetical order, numbers by value."""
    if regression:
        return Task((), metric or "spearman")
    names = set(labels)
    numeric = all(name.lstrip("-").isdigit() for name in names)
    ordered = sorted(names, key=int) if numeric else sorted(names)
    if len(ordered) < 2:
        raise ValueError(f"a classification needs 2 labels or more, found {ordered}")
    return Task(tuple(ordered), metric or "accuracy")
