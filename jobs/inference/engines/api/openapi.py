"""The API as an OpenAPI document for clients and test tools."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ropewalk.jobs.inference.engines.api.bodies import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TemplateRequest,
    TokenizeRequest,
)

_REFERENCE = "#/components/schemas/{model}"
_POSTS: dict[str, tuple[type[BaseModel], str, tuple[str, ...]]] = {
    "/v1/completions": (CompletionRequest, "Continue a prompt.", ("id", "object", "created", "model", "choices")),
    "/v1/chat/completions": (ChatRequest, "Answer a conversation.", ("id", "object", "created", "model", "choices")),
    "/tokenize": (TokenizeRequest, "Tokenize a text or a conversation.", ("tokens", "count")),
    "/detokenize": (DetokenizeRequest, "Decode tokens.", ("content",)),
    "/apply-template": (TemplateRequest, "Render the prompt of a conversation.", ("prompt",)),
}
_GETS = {
    "/health": ("Readiness and load.", ("status",)),
    "/v1/models": ("List the model.", ("object", "data")),
    "/v1/models/{model}": ("The model.", ("id", "object", "created", "owned_by")),
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def openapi(model: str) -> dict[str, Any]:
    """Return the document of an engine that serves the model with this name."""
    _, definitions = models_json_schema([(kind, "validation") for kind, _, _ in _POSTS.values()], ref_template=_REFERENCE)
    schemas = definitions["$defs"]
    for schema in schemas.values():
        if "model" in schema.get("required", []):
            schema["properties"]["model"] = {"type": "string", "enum": [model]}
    posts = {path: {"post": _post(kind, summary, keys)} for path, (kind, summary, keys) in _POSTS.items()}
    gets = {path: {"get": _get(path, summary, keys, model)} for path, (summary, keys) in _GETS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Ropewalk: {model}", "version": "1"},
        "paths": {**gets, **posts},
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _post(kind: type[BaseModel], summary: str, keys: tuple[str, ...]) -> dict[str, Any]:
    body = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=kind.__name__)}}}
    streams: dict[str, Any] = {"text/event-stream": {}} if "stream" in kind.model_fields else {}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": body},
        "responses": {"200": _answer(keys, streams), **_errors("400", "401", "404", "413", "503")},
    }


def _get(path: str, summary: str, keys: tuple[str, ...], model: str) -> dict[str, Any]:
    parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": [model]}}
    return {
        "summary": summary,
        **({"parameters": [parameter]} if "{model}" in path else {}),
        **({"security": []} if path == "/health" else {}),
        "responses": {"200": _answer(keys, {}), **_errors("401", "404"), "503": {"description": "The model is being loaded."}},
    }


def _answer(keys: tuple[str, ...], more: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": list(keys)}
    return {"description": "The answer.", "content": {"application/json": {"schema": schema}, **more}}


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}
    return {status: {"description": "An error.", "content": content} for status in statuses}
