"""What OpenTelemetry's span of a request gets to know of it."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import BuildModel
from serving import POLICY, wait_for

import tokprune_rt as tp
from tokprune_rt.serve import Settings, create_app

sdk = pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from starlette.testclient import TestClient  # noqa: E402

SECRET = "a secret text about the quick brown fox"


def instrumented(app: Any, tracer: Any) -> Any:
    """The application with a span around every request, as instrumentations open it."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        with tracer.start_as_current_span(scope["path"]):
            await app(scope, receive, send)

    return call


def test_spans(tiny: BuildModel) -> None:
    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    model = tp.load(tiny("bert"), policy=POLICY, threads=1)
    app = create_app({"m": model}, Settings())
    with TestClient(instrumented(app, provider.get_tracer("test"))) as client:
        wait_for(lambda: app.state.server.ready)
        response = client.post("/embed", json={"inputs": [SECRET, "a"], "profile": "fast"})
        assert response.status_code == 200
        assert client.post("/embed", json={"inputs": {SECRET: 1}}).status_code == 422
    good, bad = spans = exporter.get_finished_spans()
    wanted = {
        "model": response.headers["x-tokprune-model"],
        "profile": "fast",
        "items": 2,
        "tokens": int(response.headers["x-tokprune-tokens"]),
        "kept_tokens": int(response.headers["x-tokprune-kept-tokens"]),
    }
    assert {name: good.attributes[f"tokprune.{name}"] for name in wanted} == wanted
    assert good.attributes["tokprune.inference_ms"] > 0
    assert "tokprune.model" not in bad.attributes
    assert "secret" not in "".join(span.to_json() for span in spans)
