"""What a request's OpenTelemetry span says of it, where something has opened one."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from opentelemetry import trace
except ImportError:
    trace = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from tokprune_rt.serve.served import Call


def annotate(call: Call) -> None:
    """Model, profile, counts and times on the current span, as in the log; no word of the texts."""
    span = None if trace is None else trace.get_current_span()
    if span is None or not span.is_recording() or not call.model:
        return
    span.set_attributes(
        {
            "tokprune.model": call.model,
            "tokprune.profile": call.profile,
            "tokprune.items": call.items,
            "tokprune.tokens": call.tokens,
            "tokprune.kept_tokens": call.kept,
            "tokprune.tokenization_ms": 1000 * call.tokenization,
            "tokprune.queue_ms": 1000 * call.queue,
            "tokprune.inference_ms": 1000 * call.inference,
        }
    )
