"""What the OpenAPI document cannot see by itself: the types of request bodies, and the strict mounts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.routes import BaseRoute, HTTPRoute

from appliance.api.dialect import UNION, Dialect
from appliance.api.openai.audio import AUDIO_FORM_SCHEMA
from appliance.api.openai.chat import ChatRequest
from appliance.api.openai.completions import CompletionRequest
from appliance.api.openai.embeddings import EmbeddingRequest
from appliance.api.openai.rerank import RerankRequest
from appliance.api.openai.rerank_families import RootRerankRequest
from appliance.api.openai.tokenization import DetokenizeRequest, TokenizeRequest

BODIES: dict[str, type] = {
    "createChatCompletion": ChatRequest,
    "createCompletion": CompletionRequest,
    "createEmbedding": EmbeddingRequest,
    "rerank": RerankRequest,
    "rerankTexts": RootRerankRequest,
    "v2Rerank": RerankRequest,
    "cohereV1Rerank": RerankRequest,
    "cohereV2Rerank": RerankRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
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


def describe_mounts(document: dict[str, Any], routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Add the strict mounts' operations to an OpenAPI document, each as its twin in the union, and return it."""
    paths = document["paths"]
    for route in routes:
        if not isinstance(route, HTTPRoute):
            continue
        for method, (handler, _) in route.route_handler_map.items():
            dialect: Dialect = handler.opt.get("dialect", UNION)
            if dialect == UNION or method == "OPTIONS":
                continue
            twin = paths[route.path_format.removeprefix(dialect.platform)][method.lower()]
            paths.setdefault(route.path_format, {})[method.lower()] = twin | {
                "operationId": f"{dialect.name}_{twin['operationId']}",
                "tags": [dialect.name],
            }
    return document


def _body(media_type: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"required": True, "content": {media_type: {"schema": reference}}}
