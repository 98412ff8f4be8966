"""The table of contents: every route, in the order of a reader's questions."""

from __future__ import annotations

from collections.abc import Sequence

from litestar import Router
from litestar.handlers import HTTPRouteHandler
from litestar.types import ControllerRouterHandler

from appliance.api.account.info import get_info, update_info
from appliance.api.account.keys import create_key, delete_key, get_key, list_keys, regenerate_key
from appliance.api.account.login import login
from appliance.api.account.usage import get_usage
from appliance.api.admin.audit import list_audit_lines, verify_audit_log
from appliance.api.admin.organizations import (
    create_organization,
    delete_organization,
    get_organization,
    list_organizations,
    update_organization,
)
from appliance.api.admin.providers import (
    create_provider,
    delete_provider,
    get_provider,
    list_providers,
    update_provider,
)
from appliance.api.admin.roles import create_role, delete_role, get_role, list_roles, update_role
from appliance.api.admin.routers import (
    create_router,
    delete_router,
    get_router,
    list_routers,
    update_router,
)
from appliance.api.admin.tokens import (
    create_token,
    delete_token,
    get_token,
    list_tokens,
    regenerate_token,
)
from appliance.api.admin.usage import list_usage
from appliance.api.admin.users import create_user, delete_user, get_user, list_users, update_user
from appliance.api.dialect import COMPACTIFAI, COMPRESSA, OPENGATELLM, UNION, UNION_OF_ONE, Dialect
from appliance.api.documentation import (
    documentation,
    documentation_asset,
    documentation_start,
    openapi_document,
)
from appliance.api.knowledge.not_enabled import KNOWLEDGE
from appliance.api.monitoring.hardware import gpu_info
from appliance.api.monitoring.health import health, healthcheck, ready, version
from appliance.api.monitoring.metrics import metrics
from appliance.api.monitoring.opengatellm import opengatellm_health, opengatellm_metrics
from appliance.api.openai.encoding.embeddings import embeddings
from appliance.api.openai.encoding.rerank import rerank
from appliance.api.openai.encoding.rerank_families import cohere_rerank, rerank_texts
from appliance.api.openai.generation.chat import chat_completions
from appliance.api.openai.generation.completions import completions
from appliance.api.openai.models import get_model, list_models
from appliance.api.openai.ocr import ocr
from appliance.api.openai.speech.audio import transcriptions
from appliance.api.openai.tokenization import detokenize, tokenize, tokenizer_info
from appliance.api.openai.usage_report import usage_report
from appliance.api.setup import setup
from appliance.config import Settings

# Open to all; everything else needs a key (authentication.authorize).
PUBLIC: list[ControllerRouterHandler] = [
    health,
    healthcheck,
    ready,
    version,
    setup,
    openapi_document,
    documentation,
    documentation_start,
    documentation_asset,
]

# Every API's model list and text generation.
GENERATION: list[ControllerRouterHandler] = [
    list_models,
    get_model,
    chat_completions,
    completions,
]

ENCODING: list[ControllerRouterHandler] = [
    embeddings,
    rerank,
]

# What administrators do; §6 of OpenGateLLM's contract.
ADMIN: list[ControllerRouterHandler] = [
    create_organization,
    list_organizations,
    get_organization,
    update_organization,
    delete_organization,
    create_role,
    list_roles,
    get_role,
    update_role,
    delete_role,
    create_user,
    list_users,
    get_user,
    update_user,
    delete_user,
    create_router,
    list_routers,
    get_router,
    update_router,
    delete_router,
    create_provider,
    list_providers,
    get_provider,
    update_provider,
    delete_provider,
    create_token,
    list_tokens,
    get_token,
    delete_token,
]

# What administrators and accounts do in the union alone: no part of OpenGateLLM's API.
ADMIN_EXTRAS: list[ControllerRouterHandler] = [
    list_audit_lines,
    verify_audit_log,
    list_usage,
    regenerate_token,
    regenerate_key,
]

# What users do with their own account; §7.
ACCOUNT: list[ControllerRouterHandler] = [
    login,
    get_info,
    update_info,
    create_key,
    list_keys,
    get_key,
    delete_key,
    get_usage,
]

# What CompactifAI's accounts ask for.
USAGE: list[ControllerRouterHandler] = [
    usage_report,
]

AUDIO: list[ControllerRouterHandler] = [
    transcriptions,
]

# What clients of vLLM look for at the server's root.
SERVER: list[ControllerRouterHandler] = [
    tokenize,
    detokenize,
    tokenizer_info,
    gpu_info,
]

# Paths of their own in other families of rerank clients.
RERANK_FAMILIES: list[ControllerRouterHandler] = [
    rerank_texts,
    cohere_rerank,
]


def routes(settings: Settings) -> list[ControllerRouterHandler]:
    """Return all routes: the open ones, those at the root, and one mount per dialect."""
    return [
        *served([*PUBLIC, metrics, *SERVER, *RERANK_FAMILIES], settings),
        mount(
            UNION,
            [*GENERATION, *ENCODING, *USAGE, management(settings, UNION_OF_ONE, ADMIN_EXTRAS)],
            AUDIO,
            settings,
        ),
        mount(COMPRESSA, [*GENERATION, *ENCODING], [], settings),
        mount(COMPACTIFAI, [*GENERATION, *USAGE], AUDIO, settings),
        mount(
            OPENGATELLM,
            [list_models, get_model, chat_completions, *ENCODING, management(settings, OPENGATELLM)],
            AUDIO,
            settings,
        ),
        # Compressa's clients look for the server's own routes above the mount.
        Router(
            path=COMPRESSA.platform,
            route_handlers=served(SERVER, settings),
            opt={"dialect": COMPRESSA},
            include_in_schema=False,
        ),
        # As OpenGateLLM's do for its own two.
        Router(
            path=OPENGATELLM.platform,
            route_handlers=served([opengatellm_health, opengatellm_metrics], settings),
            opt={"dialect": OPENGATELLM},
            include_in_schema=False,
        ),
    ]


def management(
    settings: Settings, dialect: Dialect, extras: Sequence[ControllerRouterHandler] = ()
) -> Router:
    """Return the routes that only OpenGateLLM has, whose clients read FastAPI's lists of wrong fields."""
    handlers = served([*ADMIN, *extras, *ACCOUNT, ocr, *KNOWLEDGE], settings)
    own = {"dialect": dialect, "unprocessable": "all", "always_detail": True}
    return Router(path="/", route_handlers=handlers, opt=own)


def served(handlers: Sequence[ControllerRouterHandler], settings: Settings) -> list[ControllerRouterHandler]:
    """Return the handlers without those of a tag that the configuration removes."""
    removed = {tag.lower() for tag in settings.disabled_routers}
    return [
        handler
        for handler in handlers
        if not (
            isinstance(handler, HTTPRouteHandler) and removed & {tag.lower() for tag in handler.tags or ()}
        )
    ]


def mount(
    dialect: Dialect,
    handlers: list[ControllerRouterHandler],
    uploads: list[ControllerRouterHandler],
    settings: Settings,
) -> Router:
    """Return an API's routes under its dialect's prefix; uploads have their own size limit."""
    handlers, uploads = served(handlers, settings), served(uploads, settings)
    inner = Router(path="/", route_handlers=uploads, request_max_body_size=settings.max_upload_bytes)
    return Router(
        path=dialect.prefix,
        route_handlers=[*handlers, inner] if uploads else handlers,
        opt={"dialect": dialect},
        # The strict mounts have the same operations; operations.describe_mounts adds them to the document.
        include_in_schema=dialect is UNION,
    )
