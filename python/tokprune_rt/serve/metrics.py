"""What the server counts, in Prometheus' text format.

The ``te_*`` names are those of text-embeddings-inference, to the letter, so that its dashboards
work; client libraries would append ``_total`` to its counters.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = [f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}" if pairs else ""


class Value:
    """A counter or gauge with labels. Safe between threads."""

    def __init__(self, name: str, kind: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.kind, self.text = name, kind, text
        self._labels = tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, amount: float, *labels: str) -> None:
        """Increase."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def set(self, value: float, *labels: str) -> None:
        """Replace."""
        with self._lock:
            self._values[labels] = value

    def lines(self) -> list[str]:
        """Samples."""
        with self._lock:
            values = list(self._values.items())
        return [f"{self.name}{_labels(self._labels, key)} {value:.10g}" for key, value in values]


class Histogram:
    """A histogram with labels. Safe between threads."""

    kind = "histogram"

    def __init__(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        self.name, self.text = name, text
        self._buckets = tuple(buckets)
        self._labels = tuple(labels)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        """Count a value."""
        with self._lock:
            counts = self._counts.setdefault(labels, [0] * (len(self._buckets) + 1))
            counts[bisect_left(self._buckets, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> list[str]:
        """Cumulative buckets, sum and count."""
        with self._lock:
            series = [(key, list(counts), self._sums[key]) for key, counts in self._counts.items()]
        lines = []
        for key, counts, total in series:
            running = 0
            for bound, count in zip((*self._buckets, "+Inf"), counts, strict=True):
                running += count
                labels = _labels((*self._labels, "le"), (*key, str(bound)))
                lines.append(f"{self.name}_bucket{labels} {running}")
            labels = _labels(self._labels, key)
            lines.append(f"{self.name}_sum{labels} {total:.10g}")
            lines.append(f"{self.name}_count{labels} {running}")
        return lines


class Metrics:
    """Everything that a server counts."""

    def __init__(self) -> None:
        self._families: list[Value | Histogram] = []
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.requests = counter("te_request_count", "Requests.", "method")
        self.successes = counter("te_request_success", "Requests answered.", "method")
        self.failures = counter("te_request_failure", "Requests refused or failed.", "err")
        self.duration = histogram("te_request_duration", "Seconds per request.", _SECONDS)
        self.tokenization = histogram(
            "te_request_tokenization_duration", "Seconds of tokenization.", _SECONDS
        )
        self.queue = histogram("te_request_queue_duration", "Seconds in the queue.", _SECONDS)
        self.inference = histogram(
            "te_request_inference_duration", "Seconds of encoder calls.", _SECONDS
        )
        self.lengths = histogram("te_request_input_length", "Tokens per request.", _COUNTS)
        self.batch_size = histogram("te_batch_next_size", "Sequences per encoder call.", _COUNTS)
        self.batch_tokens = histogram("te_batch_next_tokens", "Tokens per encoder call.", _COUNTS)
        self.queue_size = gauge("te_queue_size", "Requests that wait.", "model")
        self.queue_tokens = gauge("tokprune_queue_tokens", "Tokens that wait.", "model")
        self.batch_jobs = histogram(
            "tokprune_batch_requests", "Requests that share an encoder call.", _COUNTS
        )
        self.batch_fill = histogram(
            "tokprune_batch_fill", "Share of the token budget that a call uses.", _SHARES, "model"
        )
        self.tokens = counter("tokprune_tokens_total", "Tokens encoded.", "model")
        self.kept = counter(
            "tokprune_tokens_kept_total", "Tokens left after the last layer.", "model"
        )
        self.calls = counter("tokprune_calls_total", "Encoder calls.", "model", "profile")
        self.profile = gauge(
            "tokprune_profile",
            "1 for the profile that requests without one get, 0 for those it may move to.",
            "model",
            "profile",
        )
        self.cancelled = counter(
            "tokprune_cancelled_total", "Requests dropped because nobody waits.", "model"
        )
        self.in_flight = gauge("tokprune_requests_in_flight", "Requests being worked on.")

    def _counter(self, name: str, text: str, *labels: str) -> Value:
        return self._value(name, "counter", text, labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Value:
        return self._value(name, "gauge", text, labels)

    def _value(self, name: str, kind: str, text: str, labels: Sequence[str]) -> Value:
        value = Value(name, kind, text, labels)
        self._families.append(value)
        return value

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        histogram = Histogram(name, text, buckets, labels)
        self._families.append(histogram)
        return histogram

    def render(self) -> str:
        """The exposition."""
        lines = []
        for family in self._families:
            lines.append(f"# HELP {family.name} {family.text}")
            lines.append(f"# TYPE {family.name} {family.kind}")
            lines += family.lines()
        return "\n".join(lines) + "\n"
