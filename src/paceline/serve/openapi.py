"""The OpenAPI file, made from the records that requests are read into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from paceline.serve import schema

_BODIES: dict[str, tuple[type[msgspec.Struct], str]] = {
    "/v1/chat/completions": (schema.ChatRequest, "Answer a conversation"),
    "/v1/completions": (schema.CompletionRequest, "Continue prompts"),
    "/v1/responses": (schema.ResponsesRequest, "Answer a text or a conversation"),
    "/tokenize": (schema.TokenizeRequest, "The token ids of a text or a conversation"),
    "/detokenize": (schema.DetokenizeRequest, "The text of token ids"),
}
_PAGES = {
    "/health": "Whether requests are taken",
    "/metrics": "Figures for Prometheus",
    "/openapi.json": "This file",
    "/v1/models": "The models",
    "/v1/models/{model}": "One model",
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_REFUSALS = {
    "400": "A value that is not allowed",
    "401": "No valid API key",
    "404": "No such model",
    "413": "A body that is too large",
    "415": "Not application/json",
    "429": "The queue is full; Retry-After says how long",
    "431": "Headers that are too large",
    "500": "A fault of the server",
    "503": "The server ends, or its engine is not there",
}


def document(models: Sequence[str]) -> dict[str, Any]:
    """The file. models: the names that can be asked for."""
    records = [record for record, _ in _BODIES.values()]
    bodies, components = msgspec.json.schema_components(records, ref_template="#/components/schemas/{name}")
    for record in components.values():
        if "model" in record.get("properties", {}):
            optional = "model" not in record.get("required", ())
            record["properties"]["model"] = {"enum": [*models, *([None] if optional else [])]}
    error: dict[str, Any] = {"type": ["string", "null"]}
    components["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": error,
                    "code": error,
                },
            }
        },
    }
    paths: dict[str, Any] = {}
    for (path, (_, summary)), body in zip(_BODIES.items(), bodies, strict=True):
        answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if path in _STREAMS:
            answers["text/event-stream"] = {"schema": {"type": "string"}}
        paths[path] = {
            "post": {
                "summary": summary,
                "operationId": path.strip("/").replace("/", "_"),
                "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
                "responses": {"200": {"description": "Done", "content": answers}, **_refusals()},
            }
        }
    for path, summary in _PAGES.items():
        paths[path] = {
            "get": {
                "summary": summary,
                "operationId": path.strip("/").translate({ord(c): "_" for c in "/{}."}),
                "responses": {"200": {"description": "Done"}, **_refusals()},
            }
        }
    paths["/v1/models/{model}"]["get"]["parameters"] = [
        {"name": "model", "in": "path", "required": True, "schema": {"enum": list(models)}}
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Paceline",
            "version": "1",
            "description": "OpenAI's interface, see docs/serving.md",
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
        "paths": paths,
    }


def _refusals() -> dict[str, Any]:
    form = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": words, "content": form} for status, words in _REFUSALS.items()}
