"""/v1/admin/roles."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import FromPath

from appliance.accounts.permissions import Permission
from appliance.accounts.roles import COLUMNS, Role, RoleChange, Roles, RouterLimit
from appliance.api.answers import created, json_answer, listed, no_content
from appliance.api.authentication import actor_of
from appliance.api.body import read_change, read_json
from appliance.api.errors import dialect_of
from appliance.api.field_errors import FieldError, UnprocessableError, wrong_value
from appliance.api.fields import LARGEST, Name, identifier, row_id, trimmed
from appliance.api.paging import page_of
from appliance.api.validation import shown_input
from appliance.gateway.routing.records import LimitType

Amount = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]


class DefaultLimit(msgspec.Struct):
    """A limit for the routers that a role does not name; a value of null is unlimited, 0 forbidden."""

    type: LimitType
    value: Amount | None = None


class Limit(msgspec.Struct, kw_only=True):
    """A limit for one router, which later versions of the API call ``router_id``."""

    router: int | None = None
    router_id: int | None = None
    type: LimitType
    value: Amount | None = None


class NewRole(msgspec.Struct):
    """The body of POST."""

    name: Name
    permissions: list[Permission] | None = None
    limits: list[Limit] = []


class NewRoleWithDefaults(NewRole):
    """The body of POST where roles have limits for the routers that they do not name."""

    default_limits: list[DefaultLimit] = []


class RoleUpdate(msgspec.Struct):
    """The body of PATCH; null keeps, anything else replaces all there was."""

    name: Name | None = None
    permissions: list[Permission] | None = None
    limits: list[Limit] | None = None


class RoleUpdateWithDefaults(RoleUpdate):
    """The body of PATCH where roles have limits for the routers that they do not name."""

    default_limits: list[DefaultLimit] | None = None


@post("/admin/roles", operation_id="createRole", tags=["Admin"], access="admin")
async def create_role(request: Request[Any, Any, State]) -> Response[bytes]:
    """Make a role."""
    body = await read_json(request, NewRoleWithDefaults if dialect_of(request).default_limits else NewRole)
    role_id = await _roles(request).create(actor_of(request), trimmed("name", body.name), _content(body))
    await request.app.state.gateway.reload()
    return created({"id": role_id})


@get("/admin/roles", operation_id="listRoles", tags=["Admin"], access="admin")
async def list_roles(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the roles."""
    page = page_of(request, tuple(COLUMNS))
    return listed([_shown(request, each) for each in await _roles(request).list(page.clause(COLUMNS))])


@get("/admin/roles/{role:str}", operation_id="getRole", tags=["Admin"], access="admin")
async def get_role(request: Request[Any, Any, State], role: FromPath[str]) -> Response[bytes]:
    """Describe a role."""
    return json_answer(_shown(request, await _roles(request).get(identifier("role", role))))


@patch("/admin/roles/{role:str}", operation_id="updateRole", tags=["Admin"], access="admin")
async def update_role(request: Request[Any, Any, State], role: FromPath[str]) -> Response[None]:
    """Change a role; what it allows counts for the next request of each of its users."""
    kind = RoleUpdateWithDefaults if dialect_of(request).default_limits else RoleUpdate
    role_id, body = await read_change(request, "role", role, kind)
    change = _content(body)
    if body.name is not None:
        change = msgspec.structs.replace(change, name=trimmed("name", body.name))
    await _roles(request).update(actor_of(request), role_id, change)
    await request.app.state.gateway.reload()
    return no_content()


@delete("/admin/roles/{role:str}", operation_id="deleteRole", tags=["Admin"], access="admin")
async def delete_role(request: Request[Any, Any, State], role: FromPath[str]) -> Response[None]:
    """Remove a role that no user has."""
    await _roles(request).delete(actor_of(request), identifier("role", role))
    await request.app.state.gateway.reload()
    return no_content()


def _roles(request: Request[Any, Any, State]) -> Roles:
    return Roles(request.app.state.database, request.app.state.audit)


def _content(body: NewRole | RoleUpdate) -> RoleChange:
    """Return what a body says beside the name. Raises UnprocessableError (422) for limits that cannot be."""
    defaults: list[DefaultLimit] | None = getattr(body, "default_limits", None)
    return RoleChange(
        permissions=None if body.permissions is None else list(dict.fromkeys(body.permissions)),
        limits=None if body.limits is None else _limits(body.limits),
        default_limits=None if defaults is None else _default_limits(defaults),
    )


def _limits(given: list[Limit]) -> list[RouterLimit]:
    found: dict[tuple[int, str], RouterLimit] = {}
    for place, limit in enumerate(given):
        router = limit.router if limit.router is not None else limit.router_id
        if router is None:
            came = {"type": limit.type, "value": limit.value}
            raise UnprocessableError(
                [FieldError(["body", "limits", place, "router"], "Field required", "missing", came)]
            )
        if (router, limit.type) in found:
            text = f"Duplicate limit found: ({router}, LimitType.{limit.type.upper()})."
            raise wrong_value("limits", text, shown_input(_came(given)))
        found[router, limit.type] = RouterLimit(row_id(router), limit.type, limit.value)
    return list(found.values())


def _came(given: list[Limit]) -> list[dict[str, Any]]:
    """Return limits as they came, without the other name of the router."""
    return [
        {name: value for name, value in msgspec.structs.asdict(each).items() if name != "router_id" or value}
        for each in given
    ]


def _default_limits(given: list[DefaultLimit]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for limit in given:
        if limit.type in found:
            text = f"Duplicate limit found: LimitType.{limit.type.upper()}."
            raise wrong_value("default_limits", text, shown_input(msgspec.to_builtins(given)))
        found[limit.type] = limit.value
    return found


def _shown(request: Request[Any, Any, State], role: Role) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "object": "role",
        "id": role.id,
        "name": role.name,
        "permissions": role.permissions,
        "limits": [
            {"router": each.router_id, "type": each.type, "value": each.value} for each in role.limits
        ],
    }
    if dialect_of(request).default_limits:
        shown["default_limits"] = [
            {"type": kind, "value": value} for kind, value in role.default_limits.items()
        ]
    return {
        **shown,
        "users": role.users,
        "created": role.created_at // 1000,
        "updated": role.updated_at // 1000,
    }
