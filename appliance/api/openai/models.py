"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath

from appliance.api.authentication import account_of
from appliance.api.dialect import Dialect
from appliance.api.errors import dialect_of
from appliance.api.model_call import CHAT
from appliance.gateway.catalog import Catalog
from appliance.gateway.gateway import Gateway
from appliance.gateway.routing.records import Router


@get("/models", operation_id="listModels", tags=["Models"], access="key", newer=True)
async def list_models(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the models that the caller may use."""
    gateway: Gateway = request.app.state.gateway
    dialect = dialect_of(request)
    account = account_of(request)
    routers = gateway.models(account, exempt=dialect.exempts(account), usable=dialect.hide_forbidden_models)
    if dialect.chat_models_first:
        # Clients that were told no name take the first model, and want one to chat with.
        routers.sort(key=lambda router: router.type not in CHAT.types)
    title = request.app.state.settings.app_title
    cards = [model_card(router, request.app.state.catalog, dialect, title) for router in routers]
    return Response(msgspec.json.encode({"object": "list", "data": cards}), media_type="application/json")


@get("/models/{model_id:path}", operation_id="getModel", tags=["Models"], access="key", newer=True)
async def get_model(request: Request[Any, Any, State], model_id: FromPath[str]) -> Response[bytes]:
    """Describe one model, by its name or an alias."""
    gateway: Gateway = request.app.state.gateway
    dialect = dialect_of(request)
    account = account_of(request)
    router = gateway.model(
        account,
        model_id.removeprefix("/"),
        exempt=dialect.exempts(account),
        usable=dialect.hide_forbidden_models,
    )
    card = model_card(router, request.app.state.catalog, dialect, request.app.state.settings.app_title)
    return Response(msgspec.json.encode(card), media_type="application/json")


def model_card(router: Router, catalog: Catalog, dialect: Dialect, title: str) -> dict[str, Any]:
    """Return a router's card with the fields of every API, cut to what the mount shows.

    ``title`` is the box's name: who owns a model whose owner belongs to no organization.
    """
    first = router.providers[0]
    pack = next((each.model_name for each in router.providers if each.is_local), None)
    manifest = None if pack is None else catalog.find(pack).manifest
    tools = manifest is None or (manifest.decoder is not None and manifest.decoder.tool_format != "none")
    chat = router.type in CHAT.types
    created = router.created_at // 1000
    context = first.max_context_length
    parameters = round(first.total_params * 1e9) if manifest is None else manifest.parameters
    owner = router.owner or title
    return dialect.card(
        {
            "id": router.name,
            "object": "model",
            "type": router.type,
            "aliases": list(router.aliases),
            "created": created,
            "owned_by": owner if manifest is None or dialect.owner_is_organization else manifest.owned_by,
            "max_context_length": context,
            "max_model_len": context,
            "costs": {
                "prompt_tokens": router.cost_prompt_tokens,
                "completion_tokens": router.cost_completion_tokens,
            },
            "parameters_number": parameters_number(parameters),
            "capabilities": {
                "supports_audio": router.type == "automatic-speech-recognition",
                "supports_image": router.type == "image-text-to-text",
                "supports_function_calling": chat and tools,
                "support_chat_completion": chat,
            },
            "root": router.name,
            "parent": None,
            "permission": [_permission(router.name, created)],
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
