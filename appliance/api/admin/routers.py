"""/v1/admin/routers."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import FromPath

from appliance.api.answers import created, json_answer, listed, no_content
from appliance.api.authentication import account_of, actor_of
from appliance.api.body import read_change, read_json
from appliance.api.errors import dialect_of
from appliance.api.field_errors import wrong_value
from appliance.api.fields import Name, path_number, trimmed
from appliance.api.paging import SORT_NAMES, page_of
from appliance.api.validation import shown_input
from appliance.gateway.gateway import Gateway
from appliance.gateway.routing.errors import RoutingError
from appliance.gateway.routing.owners import first_administrator, owner_of
from appliance.gateway.routing.records import ModelType, Router, Strategy
from appliance.gateway.routing.routers import RouterChange, Routers, RouterSpec

DENIED = "User has no admin rights."
# Prices beyond this are mistakes, and what a request costs must fit the store.
LARGEST_PRICE = 1e9
MOST_ALIASES = 1000

Price = Annotated[float, msgspec.Meta(ge=0, le=LARGEST_PRICE)]
Alias = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Aliases = Annotated[list[Alias], msgspec.Meta(max_length=MOST_ALIASES)]


class NewRouter(msgspec.Struct):
    """The body of POST; prices are per million tokens."""

    name: Name
    type: ModelType
    aliases: Aliases | None = None
    load_balancing_strategy: Strategy = "shuffle"
    cost_prompt_tokens: Price = 0.0
    cost_completion_tokens: Price = 0.0


class ChangedRouter(msgspec.Struct):
    """The body of PATCH; null keeps."""

    name: Name | None = None
    type: ModelType | None = None
    aliases: Aliases | None = None
    load_balancing_strategy: Strategy | None = None
    cost_prompt_tokens: Price | None = None
    cost_completion_tokens: Price | None = None


@post("/admin/routers", operation_id="createRouter", tags=["Admin"], access="admin", denied=DENIED)
async def create_router(request: Request[Any, Any, State]) -> Response[bytes]:
    """Make a router: a model's name, to which providers are then added."""
    body = await read_json(request, NewRouter)
    spec = RouterSpec(
        name=_name(body.name),
        type=body.type,
        aliases=_aliases(body.aliases) or (),
        load_balancing_strategy=body.load_balancing_strategy,
        cost_prompt_tokens=body.cost_prompt_tokens,
        cost_completion_tokens=body.cost_completion_tokens,
        user_id=owner_of(account_of(request)),
    )
    router_id = await _routers(request).create(actor_of(request), spec)
    await gateway_of(request).reload()
    return created(
        {
            "id": router_id,
            "name": spec.name,
            "type": spec.type,
            "aliases": list(dict.fromkeys(spec.aliases)),
            "load_balancing_strategy": spec.load_balancing_strategy,
            "cost_prompt_tokens": spec.cost_prompt_tokens,
            "cost_completion_tokens": spec.cost_completion_tokens,
        }
    )


@get("/admin/routers", operation_id="listRouters", tags=["Admin"], access="admin", denied=DENIED)
async def list_routers(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the routers."""
    page = page_of(request, names=SORT_NAMES)
    routers = list(gateway_of(request).table.routers.values())
    routers.sort(key=lambda router: _order(router, page.order_by), reverse=page.descending)
    shown = routers[page.offset : page.offset + page.limit]
    owner = await box_owner(request)
    return listed(
        [_shown(router, owner) for router in shown],
        total=len(routers),
        offset=page.offset,
        limit=page.limit,
    )


@get(
    "/admin/routers/{router_id:str}",
    operation_id="getRouter",
    tags=["Admin"],
    access="admin",
    denied=DENIED,
)
async def get_router(request: Request[Any, Any, State], router_id: FromPath[str]) -> Response[bytes]:
    """Describe a router."""
    router = _found(request, path_number("router_id", router_id))
    return json_answer(_shown(router, await box_owner(request)))


@patch("/admin/routers/{router_id:str}", operation_id="updateRouter", tags=["Admin"], access="admin")
async def update_router(request: Request[Any, Any, State], router_id: FromPath[str]) -> Response[None]:
    """Change a router's name, aliases, type, strategy or prices."""
    number, body = await read_change(request, "router", router_id, ChangedRouter)
    change = RouterChange(
        name=None if body.name is None else _name(body.name),
        type=body.type,
        aliases=_aliases(body.aliases),
        load_balancing_strategy=body.load_balancing_strategy,
        cost_prompt_tokens=body.cost_prompt_tokens,
        cost_completion_tokens=body.cost_completion_tokens,
    )
    await _routers(request).update(actor_of(request), number, change)
    await gateway_of(request).reload()
    return no_content()


@delete(
    "/admin/routers/{router_id:str}",
    status_code=200,
    operation_id="deleteRouter",
    tags=["Admin"],
    access="admin",
    denied=DENIED,
)
async def delete_router(request: Request[Any, Any, State], router_id: FromPath[str]) -> Response[bytes]:
    """Remove a router with its providers, and return it."""
    router = _found(request, path_number("router_id", router_id))
    owner = await box_owner(request)
    await _routers(request).delete(actor_of(request), router.id)
    await gateway_of(request).reload()
    return json_answer(_shown(router, owner))


def gateway_of(request: Request[Any, Any, State]) -> Gateway:
    """Return the gateway of the service."""
    gateway: Gateway = request.app.state.gateway
    return gateway


async def box_owner(request: Request[Any, Any, State]) -> int:
    """Return whom the mount shows as the owner of what the box itself has."""
    if dialect_of(request).master_key:
        return 0
    owner: int = await request.app.state.database.read(first_administrator)
    return owner


def _found(request: Request[Any, Any, State], router_id: int) -> Router:
    router = gateway_of(request).table.routers.get(router_id)
    if router is None:
        raise RoutingError(f"Model router {router_id} not found.")
    return router


def _name(text: str) -> str:
    name = trimmed("name", text)
    if not name.isprintable():
        raise _unprintable("name", name)
    return name


def _aliases(aliases: list[str] | None) -> tuple[str, ...] | None:
    if aliases is None:
        return None
    if not all(alias.isprintable() for alias in aliases):
        raise _unprintable("aliases", aliases)
    return tuple(aliases)


def _unprintable(field: str, given: str | list[str]) -> Exception:
    return wrong_value(field, "Names have printable characters only.", shown_input(given))


def _order(router: Router, column: str) -> tuple[Any, int]:
    keys: dict[str, Any] = {"id": router.id, "name": router.name, "created": router.created_at}
    return keys[column], router.id


def _shown(router: Router, box: int) -> dict[str, Any]:
    first = router.providers[0] if router.providers else None
    return {
        "object": "router",
        "id": router.id,
        "name": router.name,
        "user_id": box if router.user_id is None else router.user_id,
        "type": router.type,
        "aliases": list(router.aliases),
        "load_balancing_strategy": router.load_balancing_strategy,
        "vector_size": None if first is None else first.vector_size,
        "max_context_length": None if first is None else first.max_context_length,
        "cost_prompt_tokens": router.cost_prompt_tokens,
        "cost_completion_tokens": router.cost_completion_tokens,
        "providers": len(router.providers),
        "created": router.created_at // 1000,
        "updated": router.updated_at // 1000,
    }


def _routers(request: Request[Any, Any, State]) -> Routers:
    return Routers(request.app.state.database, request.app.state.audit)
