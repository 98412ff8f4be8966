"""What the OpenAPI document cannot see by itself: the types of request bodies, and the strict mounts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from litestar.routes import BaseRoute, HTTPRoute

from appliance.api.account.info import OwnChanges
from appliance.api.account.keys import NewOwnKey
from appliance.api.account.login import Login
from appliance.api.admin.organizations import NewOrganization, OrganizationChange
from appliance.api.admin.providers import ChangedProvider, NewProvider
from appliance.api.admin.roles import NewRoleWithDefaults, RoleUpdateWithDefaults
from appliance.api.admin.routers import ChangedRouter, NewRouter
from appliance.api.admin.tokens import NewToken
from appliance.api.admin.users import UserCreation, UserUpdate
from appliance.api.dialect import UNION, Dialect
from appliance.api.openai.encoding.embeddings import EmbeddingRequest
from appliance.api.openai.encoding.rerank import RerankRequest
from appliance.api.openai.encoding.rerank_families import RootRerankRequest
from appliance.api.openai.generation.chat import SearchChatRequest
from appliance.api.openai.generation.completions import CompletionRequest
from appliance.api.openai.ocr import OcrRequest
from appliance.api.openai.speech.audio_form import AUDIO_FORM_SCHEMA
from appliance.api.openai.tokenization import DetokenizeRequest, TokenizeRequest
from appliance.api.openai.usage_report import UsageReportRequest
from appliance.api.setup import Setup

BODIES: dict[str, type] = {
    "createChatCompletion": SearchChatRequest,
    "createCompletion": CompletionRequest,
    "createEmbedding": EmbeddingRequest,
    "rerank": RerankRequest,
    "rerankTexts": RootRerankRequest,
    "v2Rerank": RerankRequest,
    "cohereV1Rerank": RerankRequest,
    "cohereV2Rerank": RerankRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
    "createUsageReport": UsageReportRequest,
    "ocr": OcrRequest,
    "login": Login,
    "setup": Setup,
    "updateInfo": OwnChanges,
    "createKey": NewOwnKey,
    "createOrganization": NewOrganization,
    "updateOrganization": OrganizationChange,
    "createRole": NewRoleWithDefaults,
    "updateRole": RoleUpdateWithDefaults,
    "createUser": UserCreation,
    "updateUser": UserUpdate,
    "createToken": NewToken,
    "createRouter": NewRouter,
    "updateRouter": ChangedRouter,
    "createProvider": NewProvider,
    "updateProvider": ChangedProvider,
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


def without_tags(document: dict[str, Any], hidden: Iterable[str]) -> dict[str, Any]:
    """Remove the operations with a tag in ``hidden`` (in any case) from an OpenAPI document, and return it."""
    words = {tag.lower() for tag in hidden}
    paths: dict[str, Any] = {}
    for path, item in document["paths"].items():
        kept = {
            method: operation
            for method, operation in item.items()
            if not (
                isinstance(operation, dict) and words & {tag.lower() for tag in operation.get("tags", ())}
            )
        }
        if kept:
            paths[path] = kept
    return document | {"paths": paths}


def describe_mounts(document: dict[str, Any], routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Add the strict mounts' operations to an OpenAPI document, each as its twin in the union, and return it."""
    paths = document["paths"]
    for route in routes:
        if not isinstance(route, HTTPRoute):
            continue
        for method, (handler, _) in route.route_handler_map.items():
            dialect: Dialect = handler.opt.get("dialect", UNION)
            if dialect.prefix == UNION.prefix or method == "OPTIONS":
                continue
            twin = paths.get(route.path_format.removeprefix(dialect.platform), {}).get(method.lower())
            if twin is None:
                continue  # left out of the document, as the configuration has it
            paths.setdefault(route.path_format, {})[method.lower()] = twin | {
                "operationId": f"{dialect.name}_{twin['operationId']}",
                "tags": [dialect.name],
            }
    return document


def _body(media_type: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"required": True, "content": {media_type: {"schema": reference}}}
