"""The table of contents: every route, in the order of a reader's questions."""

from __future__ import annotations

from litestar import Router
from litestar.types import ControllerRouterHandler

from appliance.api.dialect import UNION, Dialect
from appliance.api.documentation import (
    documentation,
    documentation_asset,
    documentation_start,
    openapi_document,
)
from appliance.api.monitoring.health import health, healthcheck, ready, version
from appliance.api.monitoring.metrics import metrics
from appliance.api.openai.audio import transcriptions
from appliance.api.openai.chat import chat_completions
from appliance.api.openai.completions import completions
from appliance.api.openai.embeddings import embeddings
from appliance.api.openai.models import get_model, list_models
from appliance.api.openai.rerank import rerank
from appliance.config import Settings

# Open to all; everything else needs a key (authentication.require_key).
PUBLIC: list[ControllerRouterHandler] = [
    health,
    healthcheck,
    ready,
    version,
    openapi_document,
    documentation,
    documentation_start,
    documentation_asset,
]

MODELS: list[ControllerRouterHandler] = [
    list_models,
    get_model,
    chat_completions,
    completions,
    embeddings,
    rerank,
]

UPLOADS: list[ControllerRouterHandler] = [
    transcriptions,
]


def routes(settings: Settings) -> list[ControllerRouterHandler]:
    """Return all routes: the open ones, the metrics, and one mount per dialect."""
    return [*PUBLIC, metrics, mount(UNION, settings)]


def mount(dialect: Dialect, settings: Settings) -> Router:
    """Return the model routes under a dialect's prefix; uploads have their own size limit."""
    uploads = Router(path="/", route_handlers=UPLOADS, request_max_body_size=settings.max_upload_bytes)
    return Router(path=dialect.prefix, route_handlers=[*MODELS, uploads], opt={"dialect": dialect})
