"""Requests as OpenTelemetry's instrumentation of Starlette sees them."""

from __future__ import annotations

import pytest
from conftest import BuildModel
from serving import POLICY, wait_for

import tokprune_rt as tp
from tokprune_rt.serve import Settings, create_app

starlette = pytest.importorskip("opentelemetry.instrumentation.starlette")
sdk = pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from starlette.testclient import TestClient  # noqa: E402

SECRET = "a secret text about the quick brown fox"


def test_spans(tiny: BuildModel) -> None:
    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    model = tp.load(tiny("bert"), policy=POLICY, threads=1)
    app = create_app({"m": model}, Settings())
    starlette.StarletteInstrumentor.instrument_app(app, tracer_provider=provider)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with TestClient(app) as client:
        wait_for(lambda: app.state.server.ready)
        body = {"inputs": [SECRET, "a"], "profile": "fast"}
        response = client.post("/embed", json=body, headers={"traceparent": parent})
        assert response.status_code == 200
        assert client.post("/embed", json={"inputs": {SECRET: 1}}).status_code == 422
    spans = exporter.get_finished_spans()
    good, bad = (span for span in spans if span.kind.name == "SERVER")
    assert good.name == bad.name == "POST /embed"
    assert f"{good.context.trace_id:032x}" in parent
    assert good.attributes["http.route"] == "/embed"
    assert good.attributes["http.status_code"] == 200 and bad.attributes["http.status_code"] == 422
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
