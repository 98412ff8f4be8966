"""/v1/admin/providers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import FromPath

from appliance.api.admin.routers import DENIED, box_owner, gateway_of
from appliance.api.answers import created, json_answer, listed, no_content
from appliance.api.authentication import account_of, actor_of
from appliance.api.body import read_change, read_json
from appliance.api.dialect import Dialect
from appliance.api.errors import dialect_of
from appliance.api.field_errors import missing_field, wrong_field, wrong_value
from appliance.api.fields import LARGEST, Name, identifier, path_number, row_id, trimmed
from appliance.api.paging import gathered, optional_query_id, page_of
from appliance.api.validation import listed as alternatives
from appliance.api.validation import shown_input
from appliance.config import Settings
from appliance.gateway.routing.errors import RoutingError
from appliance.gateway.routing.measuring import measured
from appliance.gateway.routing.owners import owner_of
from appliance.gateway.routing.pairing import require_pairing
from appliance.gateway.routing.providers import ProviderChange, Providers, ProviderSpec
from appliance.gateway.routing.records import Provider, ProviderType, QosMetric, Router
from appliance.gateway.routing.url_policy import DEFAULT_URLS, UrlRefusedError, checked_url
from appliance.gateway.usage.zones import WORLD, ZONES
from appliance.network.egress import EgressPolicy

# Shown in place of a key: the key itself leaves the box to its server only.
MASK = "********"
# Types that OpenGateLLM has, and as which its clients see this box's own.
PublishedType = Literal["albert", "openai", "mistral", "tei", "vllm"]
ENCODERS = ("text-embeddings-inference", "text-classification")
LONGEST_KEY = 4096
LARGEST_FIGURE = 1e15

Figure = Annotated[float, msgspec.Meta(ge=0, le=LARGEST_FIGURE)]
Billions = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Timeout = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]


class NewProvider(msgspec.Struct, kw_only=True):
    """The body of POST. ``timeout`` is seconds, parameters are billions."""

    router: int | None = None
    router_id: int | None = None
    type: ProviderType
    url: Name | None = None
    key: Name | None = None
    timeout: Timeout = 300
    model_name: Name
    model_hosting_zone: str | None = None
    model_total_params: Figure = 0.0
    model_active_params: Figure = 0.0
    qos_metric: QosMetric | None = None
    qos_limit: Figure | None = None


class PublishedProvider(NewProvider, kw_only=True):
    """The body of POST as OpenGateLLM has it: without this box's own types, and in whole billions."""

    type: PublishedType
    model_total_params: Billions = 0
    model_active_params: Billions = 0


class ChangedProvider(msgspec.Struct, kw_only=True):
    """The body of PATCH; null keeps."""

    router: int | None = None
    router_id: int | None = None
    timeout: Timeout | None = None
    model_hosting_zone: str | None = None
    model_total_params: Figure | None = None
    model_active_params: Figure | None = None
    qos_metric: QosMetric | None = None
    qos_limit: Figure | None = None


class ChangedPublishedProvider(ChangedProvider, kw_only=True):
    """The body of PATCH as OpenGateLLM has it."""

    model_total_params: Billions | None = None
    model_active_params: Billions | None = None


@post("/admin/providers", operation_id="createProvider", tags=["Admin"], access="admin", denied=DENIED)
async def create_provider(request: Request[Any, Any, State]) -> Response[bytes]:
    """Add a provider to a router, after a look at its server."""
    own = dialect_of(request).own_provider_types
    body = await read_json(request, NewProvider if own else PublishedProvider)
    settings: Settings = request.app.state.settings
    spec = _spec(request, body, settings)
    gateway = gateway_of(request)
    router = gateway.table.routers.get(spec.router_id)
    if router is None:
        raise RoutingError(f"Model router {_router_of(body)} not found.")
    require_pairing(spec.type, router.type)
    if spec.url is not None:
        try:
            url = await checked_url(spec.url, EgressPolicy(settings.provider_networks))
        except UrlRefusedError as error:
            raise wrong_value("url", error.message, shown_input(spec.url)) from error
        spec = msgspec.structs.replace(spec, url=url)
    spec = await measured(spec, router.type, gateway.upstream, request.app.state.catalog)
    provider_id = await _providers(request).create(actor_of(request), spec)
    await gateway.reload()
    shown = await _described(request, *_found(request, provider_id))
    del shown["object"]
    return created(shown)


@get("/admin/providers", operation_id="listProviders", tags=["Admin"], access="admin")
async def list_providers(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the providers, of one router or of all."""
    wanted, other, page = gathered(
        lambda: optional_query_id(request, "router"),
        lambda: optional_query_id(request, "router_id"),
        lambda: page_of(request, ("id", "model_name", "created")),
    )
    wanted = other if wanted is None else wanted
    table = gateway_of(request).table
    found = [
        provider
        for router in table.routers.values()
        if wanted in (None, router.id)
        for provider in router.providers
    ]
    found.sort(key=lambda provider: _order(provider, page.order_by), reverse=page.descending)
    dialect, box = dialect_of(request), await box_owner(request)
    return listed(
        [
            _shown(table.routers[each.router_id], each, dialect, box)
            for each in found[page.offset : page.offset + page.limit]
        ]
    )


@get("/admin/providers/{provider_id:str}", operation_id="getProvider", tags=["Admin"], access="admin")
async def get_provider(request: Request[Any, Any, State], provider_id: FromPath[str]) -> Response[bytes]:
    """Describe a provider."""
    found = _found(request, identifier("provider", provider_id))
    return json_answer(await _described(request, *found))


@patch("/admin/providers/{provider_id:str}", operation_id="updateProvider", tags=["Admin"], access="admin")
async def update_provider(request: Request[Any, Any, State], provider_id: FromPath[str]) -> Response[None]:
    """Change a provider, or move it to another router."""
    own = dialect_of(request).own_provider_types
    kind = ChangedProvider if own else ChangedPublishedProvider
    number, body = await read_change(request, "provider", provider_id, kind)
    _check_qos(body.qos_metric, body.qos_limit)
    router = _router_of(body)
    change = ProviderChange(
        router_id=None if router is None else row_id(router),
        timeout=body.timeout,
        hosting_zone=_zone(body.model_hosting_zone),
        total_params=body.model_total_params,
        active_params=body.model_active_params,
        qos_metric=body.qos_metric,
        qos_limit=body.qos_limit,
    )
    await _providers(request).update(actor_of(request), number, change)
    await gateway_of(request).reload()
    return no_content()


@delete(
    "/admin/providers/{provider_id:str}",
    status_code=200,
    operation_id="deleteProvider",
    tags=["Admin"],
    access="admin",
    denied=DENIED,
)
async def delete_provider(request: Request[Any, Any, State], provider_id: FromPath[str]) -> Response[bytes]:
    """Remove a provider, and return it."""
    number = path_number("provider_id", provider_id)
    shown = await _described(request, *_found(request, number, f"Model provider {number} not found."))
    await _providers(request).delete(actor_of(request), number)
    await gateway_of(request).reload()
    return json_answer(shown)


def _spec(request: Request[Any, Any, State], body: NewProvider, settings: Settings) -> ProviderSpec:
    """Check the fields. The URL is checked later: that takes a look-up of its host."""
    router = _router_of(body)
    if router is None:
        raise missing_field("router")
    local = body.type == "local"
    _check_qos(body.qos_metric, body.qos_limit)
    url = None if body.url is None or local else trimmed("url", body.url, 4096)
    if url is None and not local:
        url = DEFAULT_URLS.get(body.type) if settings.egress_networks else None
        if url is None:
            raise wrong_value("url", "URL is required for this model provider type.", body.url)
    return ProviderSpec(
        router_id=row_id(router),
        user_id=owner_of(account_of(request)),
        type=body.type,
        url=url,
        key=None if body.key is None or local else _key(body.key),
        timeout=body.timeout,
        model_name=_printable("model_name", trimmed("model_name", body.model_name)),
        hosting_zone=_zone(body.model_hosting_zone) or (settings.hosting_zone if local else WORLD),
        total_params=body.model_total_params,
        active_params=body.model_active_params,
        qos_metric=body.qos_metric,
        qos_limit=body.qos_limit,
        max_context_length=None,
        vector_size=None,
    )


def _router_of(body: NewProvider | ChangedProvider) -> int | None:
    """Return the router that a body names, by either of its names."""
    return body.router_id if body.router is None else body.router


def _check_qos(metric: QosMetric | None, limit: float | None) -> None:
    if metric is not None and limit is None:
        raise wrong_value("qos_limit", "QoS value is required if QoS metric is provided.", limit)


def _zone(zone: str | None) -> str | None:
    if zone is not None and zone not in ZONES:
        words = alternatives(sorted(ZONES))
        raise wrong_field(
            "model_hosting_zone",
            f"Input should be {words}",
            "enum",
            input=shown_input(zone),
            ctx={"expected": words},
        )
    return zone


def _key(text: str) -> str:
    key = trimmed("key", text, LONGEST_KEY)
    if not key.isascii():
        raise wrong_value("key", "A key has ASCII characters only.")
    return _printable("key", key)


def _printable(field: str, text: str) -> str:
    if not text.isprintable():
        raise wrong_value(field, "The text must have printable characters only.")
    return text


def _found(
    request: Request[Any, Any, State], provider_id: int, otherwise: str = "Model provider not found."
) -> tuple[Router, Provider]:
    for router in gateway_of(request).table.routers.values():
        for provider in router.providers:
            if provider.id == provider_id:
                return router, provider
    raise RoutingError(otherwise)


def _order(provider: Provider, column: str) -> tuple[Any, int]:
    keys: dict[str, Any] = {
        "id": provider.id,
        "model_name": provider.model_name,
        "created": provider.created_at,
    }
    return keys[column], provider.id


async def _described(request: Request[Any, Any, State], router: Router, provider: Provider) -> dict[str, Any]:
    return _shown(router, provider, dialect_of(request), await box_owner(request))


def _shown(router: Router, provider: Provider, dialect: Dialect, box: int) -> dict[str, Any]:
    own = dialect.own_provider_types
    total, active = provider.total_params, provider.active_params
    return {
        "object": "provider",
        "id": provider.id,
        "router_id": provider.router_id,
        "user_id": box if provider.user_id is None else provider.user_id,
        "type": provider.type if own else _published_type(provider.type, router),
        "url": provider.url if own or provider.url is None else provider.url.lower(),
        "key": None if provider.sealed_key is None else MASK,
        "timeout": provider.timeout,
        "model_name": provider.model_name,
        "model_hosting_zone": provider.hosting_zone,
        "model_total_params": total if own else round(total),
        "model_active_params": active if own else round(active),
        "qos_metric": provider.qos_metric,
        "qos_limit": provider.qos_limit,
        "created": provider.created_at // 1000,
        "updated": None if provider.updated_at is None else provider.updated_at // 1000,
    }


def _published_type(kind: ProviderType, router: Router) -> ProviderType:
    """Return the type of OpenGateLLM's that comes closest: another box of this kind is one of its gateways."""
    if kind == "local":
        return "tei" if router.type in ENCODERS else "vllm"
    return "albert" if kind == "appliance" else kind


def _providers(request: Request[Any, Any, State]) -> Providers:
    state = request.app.state
    return Providers(state.database, state.audit, state.sealer)
