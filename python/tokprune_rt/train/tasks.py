"""What is learned, how it is scored, and the loss: classes, a number or a rank for a text."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from torch.nn import functional

from tokprune_rt.tokenizer import Tokenizer
from tokprune_rt.train import ranking
from tokprune_rt.train.data import Data, Encoded, Examples, Questions, Sentences
from tokprune_rt.train.leaving import Leaving, leaving_of

Form = TypeVar("Form", Examples, Sentences, Questions)
Floats = NDArray[np.float32]
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
# Labels of which a classification may have more than half as many as examples.
_MANY_LABELS = 20


@dataclass(frozen=True)
class Task(ABC):
    """What a model learns.

    Attributes:
        labels: the classes in the order of the head's outputs; empty without classes.
        metric: how answers are scored, in points: 100 times the metric's value.
    """

    labels: tuple[str, ...]
    metric: str

    kind: ClassVar[str]
    """The runtime's name of the task."""

    @property
    def is_regression(self) -> bool:
        """Whether targets are numbers, which teach better than another model's answers."""
        return False

    @property
    def leaving(self) -> Leaving:
        """How tokens leave when it is learned which."""
        return leaving_of(self.kind)

    @abstractmethod
    def encode(self, data: Data, tokenizer: Tokenizer) -> Encoded:
        """Tokenise as the runtime's task of this name does.

        Raises ValueError for data of another task, and for a label that is not known.
        """

    def aligned(self, targets: Tensor, real: Tensor) -> Tensor:
        """The targets of a batch as `loss` takes them; ``real`` [B, S] is False at padding."""
        return targets

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over a batch; ``logits`` as `masked.logits_of` gives them."""

    @abstractmethod
    def distance(self, logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
        """How far from a teacher's logits: KL at a temperature, or the squared error."""

    @abstractmethod
    def score(self, logits: Sequence[Floats], data: Encoded) -> float:
        """The metric, in points; ``logits``, one array a sequence, as the runtime gives them."""

    def remark(self, logits: Sequence[Floats]) -> str | None:
        """What a score may hide, if there is anything."""
        return None

    def _expected(self, data: Data, form: type[Form]) -> Form:
        """``data``, if it is of this form; ValueError says what it is."""
        if not isinstance(data, form):
            raise ValueError(f"a {self.kind} model cannot learn from {_FORMS[type(data)]}")
        return data


_FORMS = {
    Examples: "texts with one label each",
    Sentences: "sentences with tagged words",
    Questions: "questions with answers",
}


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL from a teacher, [rows, classes], mean over rows, in the scale of temperature 1."""
    student = functional.log_softmax(logits.float() / temperature, dim=-1)
    target = functional.log_softmax(teacher.float() / temperature, dim=-1)
    parts = functional.kl_div(student, target, log_target=True, reduction="batchmean")
    return parts * temperature**2


@dataclass(frozen=True)
class TextTask(Task):
    """A sequence classification or, without labels, a regression; metrics: `METRICS`."""

    kind: ClassVar[str] = "sequence-classification"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            known = ", ".join((*METRICS, *ranking.METRICS))
            raise ValueError(f"unknown metric {self.metric!r}; known: {known}")
        if (self.metric in _OF_NUMBERS) != self.is_regression:
            kind = "a regression" if self.is_regression else "a classification"
            raise ValueError(f"metric {self.metric!r} does not fit {kind}")
        if self.metric in ("f1", "matthews") and len(self.labels) != 2:
            raise ValueError(f"metric {self.metric!r} needs 2 classes, found {len(self.labels)}")

    @property
    def is_regression(self) -> bool:
        return not self.labels

    def encode(self, data: Data, tokenizer: Tokenizer) -> Encoded:
        found = self._expected(data, Examples)
        return Encoded(tokenizer.tokenize(found.texts), self._targets(found))

    def _targets(self, data: Examples) -> Tensor:
        """Class numbers int64 [n] or values float32 [n]."""
        if self.is_regression:
            values = [_number(data, index) for index in range(len(data))]
            return torch.tensor(values, dtype=torch.float32)
        places = {label: index for index, label in enumerate(self.labels)}
        check_labels(data.labels, data.places, self.labels)
        return torch.tensor([places[label] for label in data.labels])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.is_regression:
            return functional.mse_loss(logits.squeeze(-1).float(), targets)
        return functional.cross_entropy(logits.float(), targets)

    def distance(self, logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
        if self.is_regression:
            return functional.mse_loss(logits.float(), teacher.float())
        return divergence(logits, teacher, temperature)

    def score(self, logits: Sequence[Floats], data: Encoded) -> float:
        rows = np.stack(list(logits))
        found = rows[:, 0] if self.is_regression else rows.argmax(axis=1)
        return 100 * METRICS[self.metric](
            np.asarray(found, np.float64), data.targets.numpy().astype(np.float64)
        )

    def remark(self, logits: Sequence[Floats]) -> str | None:
        classes = {int(row.argmax()) for row in logits} if self.labels else set()
        if len(classes) != 1 or len(logits) < 2:
            return None
        return (
            f"every text gets the label {self.labels[classes.pop()]!r}: the model tells nothing "
            "apart yet; more epochs, more texts or another --rate may help"
        )


@dataclass(frozen=True)
class RankTask(TextTask):
    """How relevant a document is to a query; metrics: `ranking.METRICS`.

    Pairs of a query and a document with labels from 0 to 1, one output whose sigmoid is the score;
    binary cross-entropy. The tokens of the query stay when it is learned which leave.
    """

    def __post_init__(self) -> None:
        if self.metric not in ranking.METRICS:
            known = ", ".join(ranking.METRICS)
            raise ValueError(f"unknown metric {self.metric!r} of a ranking; known: {known}")
        if self.labels:
            raise ValueError(f"a ranking has one output, found {len(self.labels)} classes")

    @property
    def leaving(self) -> Leaving:
        return Leaving(segment=0)

    def encode(self, data: Data, tokenizer: Tokenizer) -> Encoded:
        found = self._expected(data, Examples)
        queries: dict[str, int] = {}
        for index, text in enumerate(found.texts):
            if isinstance(text, str):
                where = f" ({found.places[index]})" if found.places else ""
                raise ValueError(
                    f"a ranking needs pairs of a query and a document, found one text{where}"
                )
            queries.setdefault(text[0], len(queries))
        numbers = np.array([queries[text[0]] for text in found.texts])
        return replace(super().encode(data, tokenizer), truth=numbers)

    def _targets(self, data: Examples) -> Tensor:
        values = super()._targets(data)
        outside = torch.nonzero((values < 0) | (values > 1))
        if len(outside):
            index = int(outside[0])
            where = f" ({data.places[index]})" if data.places else ""
            raise ValueError(
                f"a ranking needs labels from 0 to 1, found {data.labels[index]!r}{where}"
            )
        return values

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits.squeeze(-1).float(), targets)

    def score(self, logits: Sequence[Floats], data: Encoded) -> float:
        scores, relevance = np.stack(list(logits))[:, 0], data.targets.numpy()
        return 100 * float(ranking.per_query(self.metric, scores, relevance, data.truth).mean())


def _number(data: Examples, index: int) -> float:
    label = data.labels[index]
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        where = f" ({data.places[index]})" if data.places else ""
        raise ValueError(f"a regression needs numbers as labels, found {label!r}{where}")
    return value


def check_labels(found: Iterable[str], places: Sequence[str], known: Sequence[str]) -> None:
    """ValueError for labels that are not known, with the first place of each; ``places`` has one
    for each label found, or none at all."""
    unknown: dict[str, str] = {}
    allowed = set(known)
    for index, label in enumerate(found):
        if label not in allowed and label not in unknown:
            unknown[label] = f" ({places[index]})" if places else ""
    if unknown:
        listed = ", ".join(f"{label!r}{where}" for label, where in sorted(unknown.items())[:5])
        expected = ", ".join(map(repr, known))
        raise ValueError(f"unknown labels {listed}; known: {expected}; is it the right column?")


def text_task(labels: Sequence[str], regression: bool, metric: str | None) -> TextTask:
    """The task of a training set; classes in alphabetical order, numbers by value."""
    if regression:
        return TextTask((), metric or "spearman")
    names = set(labels)
    numeric = all(re.fullmatch("-?[0-9]+", name) for name in names)
    ordered = sorted(names, key=lambda name: (int(name) if numeric else 0, name))
    if len(ordered) < 2:
        raise ValueError(f"a classification needs 2 labels or more, found {ordered}")
    if len(ordered) > max(_MANY_LABELS, len(labels) / 2):
        raise ValueError(
            f"{len(ordered)} different labels in {len(labels)} examples, as {ordered[0]!r}; those "
            "of a classification repeat: is it the right column? (numbers to learn: --regression)"
        )
    return TextTask(tuple(ordered), metric or "accuracy")
