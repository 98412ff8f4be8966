"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State

from appliance.api.dialect import Dialect
from appliance.api.errors import dialect_of
from appliance.gateway.catalog import Catalog, ServedModel

# The model types of OpenGateLLM's cards.
TYPES = {
    "chat": "text-generation",
    "embedding": "text-embeddings-inference",
    "rerank": "text-classification",
    "transcription": "automatic-speech-recognition",
}


@get("/models", operation_id="listModels", tags=["Models"])
async def list_models(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the models that this box serves."""
    catalog: Catalog = request.app.state.catalog
    dialect = dialect_of(request)
    # Clients that were told no name take the first model, and want one to chat with.
    models = sorted(catalog.models(), key=lambda model: model.manifest.task != "chat")
    cards = [model_card(model, dialect) for model in models]
    return Response(msgspec.json.encode({"object": "list", "data": cards}), media_type="application/json")


@get("/models/{model_id:path}", operation_id="getModel", tags=["Models"])
async def get_model(request: Request[Any, Any, State], model_id: str) -> Response[bytes]:
    """Describe one model."""
    catalog: Catalog = request.app.state.catalog
    card = model_card(catalog.find(model_id.removeprefix("/")), dialect_of(request))
    return Response(msgspec.json.encode(card), media_type="application/json")


def model_card(model: ServedModel, dialect: Dialect) -> dict[str, Any]:
    """Return a model's card with the fields of every API, cut to what the mount shows."""
    manifest = model.manifest
    context = manifest.context_length or None
    tools = manifest.decoder is not None and manifest.decoder.tool_format != "none"
    return dialect.card(
        {
            "id": manifest.name,
            "object": "model",
            "type": TYPES[manifest.task],
            "aliases": [],
            "created": manifest.created,
            "owned_by": manifest.owned_by,
            "max_context_length": context,
            "max_model_len": context,
            "costs": {"prompt_tokens": 0.0, "completion_tokens": 0.0},
            "parameters_number": parameters_number(manifest.parameters),
            "capabilities": {
                "supports_audio": manifest.task == "transcription",
                "supports_image": False,
                "supports_function_calling": tools,
                "support_chat_completion": manifest.task == "chat",
            },
            "root": manifest.name,
            "parent": None,
            "permission": [_permission(manifest.name, manifest.created)],
        }
    )


def parameters_number(parameters: int) -> str:
    """Write a parameter count as cards do: "135M", "8B", "51.8B"."""
    for unit, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{letter}"
    return str(parameters)


def _permission(name: str, created: int) -> dict[str, Any]:
    return {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
