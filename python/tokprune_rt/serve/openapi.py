"""The OpenAPI document of the routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

import tokprune_rt
from tokprune_rt.serve.routing import Route

_STATUSES = {
    "400": "Nothing to work on, or (OpenAI's routes) an invalid request",
    "401": "The API key is missing or wrong",
    "404": "Unknown model",
    "408": "The body did not arrive in time",
    "413": "Beyond a limit",
    "422": "Invalid request",
    "424": "The encoder failed",
    "429": "Overloaded; see Retry-After",
    "503": "Starting, shutting down, or not able to start",
    "504": "Not done in time",
}


def document(routes: Sequence[Route], secured: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes; ``secured`` says that they need a key."""
    bodies = {route.body for route in routes if route.body is not None}
    ordered = sorted(bodies, key=lambda body: body.__name__)
    mapping, definitions = models_json_schema(
        [(body, "validation") for body in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        success: dict[str, Any] = {"description": "Success"}
        if not route.public:
            success["content"] = {"application/json": {"schema": {}}}
        operation: dict[str, Any] = {"summary": route.summary, "responses": {"200": success}}
        if route.body is not None:
            schema = mapping[(route.body, "validation")]
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
            for status, text in _STATUSES.items():
                operation["responses"][status] = {"description": text}
        if secured and not route.public:
            operation["security"] = [{"key": []}]
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    components: dict[str, Any] = {"schemas": definitions.get("$defs", {})}
    if secured:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tokprune", "version": tokprune_rt.__version__},
        "paths": paths,
        "components": components,
    }
