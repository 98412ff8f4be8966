"""Request bodies in the OpenAPI document: handlers read bodies themselves, this names their types."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.api.openai.audio import AUDIO_FORM_SCHEMA
from appliance.api.openai.chat import ChatRequest
from appliance.api.openai.completions import CompletionRequest
from appliance.api.openai.embeddings import EmbeddingRequest
from appliance.api.openai.rerank import RerankRequest

BODIES: dict[str, type] = {
    "createChatCompletion": ChatRequest,
    "createCompletion": CompletionRequest,
    "createEmbedding": EmbeddingRequest,
    "rerank": RerankRequest,
}
FORMS: dict[str, dict[str, Any]] = {"createTranscription": AUDIO_FORM_SCHEMA}


def body_schemas() -> dict[str, Any]:
    """Return the JSON Schemas of all bodies and of what they refer to, by name."""
    _, components = msgspec.json.schema_components(
        BODIES.values(), ref_template="#/components/schemas/{name}"
    )
    return {**components, **FORMS}


def describe_bodies(document: dict[str, Any]) -> dict[str, Any]:
    """Add the request bodies to an OpenAPI document, by operation id, and return it."""
    document["components"].setdefault("schemas", {}).update(body_schemas())
    for path in document["paths"].values():
        for operation in path.values():
            name = operation.get("operationId") if isinstance(operation, dict) else None
            if name in BODIES:
                operation["requestBody"] = _body("application/json", BODIES[name].__name__)
            elif name in FORMS:
                operation["requestBody"] = _body("multipart/form-data", name)
    return document


def _body(media_type: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"required": True, "content": {media_type: {"schema": reference}}}
