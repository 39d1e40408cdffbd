"""What the server counts, for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# text-embeddings-inference's counters, to the letter, so that its dashboards work; Prometheus'
# library ends the names of all counters with _total.
_BARE = re.compile(rb"\b(te_request_(?:count|success|failure))_total\b")


class Metrics:
    """Everything that a server counts. Safe between threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        self.requests = counter("te_request_count", "Requests.", ["method"])
        self.successes = counter("te_request_success", "Requests answered.", ["method"])
        self.failures = counter("te_request_failure", "Requests refused or failed.", ["err"])
        self.duration = self._histogram("te_request_duration", "Seconds per request.", _SECONDS)
        self.tokenization = self._histogram(
            "te_request_tokenization_duration", "Seconds of tokenization.", _SECONDS
        )
        self.queue = self._histogram("te_request_queue_duration", "Seconds in the queue.", _SECONDS)
        self.inference = self._histogram(
            "te_request_inference_duration", "Seconds of encoder calls.", _SECONDS
        )
        self.lengths = self._histogram("te_request_input_length", "Tokens per request.", _COUNTS)
        self.batch_size = self._histogram(
            "te_batch_next_size", "Sequences per encoder call.", _COUNTS
        )
        self.batch_tokens = self._histogram(
            "te_batch_next_tokens", "Tokens per encoder call.", _COUNTS
        )
        self.queue_size = gauge("te_queue_size", "Requests that wait.", ["model"])
        self.queue_tokens = gauge("tokprune_queue_tokens", "Tokens that wait.", ["model"])
        self.batch_jobs = self._histogram(
            "tokprune_batch_requests", "Requests that share an encoder call.", _COUNTS
        )
        self.batch_fill = self._histogram(
            "tokprune_batch_fill", "Share of the token budget that a call uses.", _SHARES, ["model"]
        )
        self.tokens = counter("tokprune_tokens_total", "Tokens encoded.", ["model"])
        self.kept = counter(
            "tokprune_tokens_kept_total", "Tokens left after the last layer.", ["model"]
        )
        self.calls = counter("tokprune_calls_total", "Encoder calls.", ["model", "profile"])
        self.profile = gauge(
            "tokprune_profile",
            "1 for the profile that requests without one get, 0 for those it may move to.",
            ["model", "profile"],
        )
        self.cancelled = counter(
            "tokprune_cancelled_total", "Requests dropped because nobody waits.", ["model"]
        )
        self.in_flight = gauge("tokprune_requests_in_flight", "Requests being worked on.")

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def collect(self) -> Iterator[Any]:
        """The metrics without the times at which their counting began."""
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric

    def render(self) -> bytes:
        """The exposition."""
        return _BARE.sub(rb"\1", generate_latest(self))
