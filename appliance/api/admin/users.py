"""/v1/admin/users."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import FromPath

from appliance.accounts.users import (
    COLUMNS,
    LONGEST_EMAIL,
    LONGEST_PASSWORD,
    NewUser,
    User,
    UserChange,
    UserFilter,
    Users,
)
from appliance.api.answers import created, json_answer, listed, no_content
from appliance.api.authentication import actor_of
from appliance.api.body import read_change, read_json
from appliance.api.fields import LARGEST, LONGEST_NAME, bounded_text, future, identifier, row_id
from appliance.api.paging import gathered, optional_query_id, page_of, query_text

MICROS = 1_000_000

Budget = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]


class UserCreation(msgspec.Struct):
    """The body of POST. ``budget`` in the currency, null without a limit; ``expires`` in UTC seconds."""

    email: str
    password: str
    role: int
    name: str | None = None
    organization: int | None = None
    budget: Budget | None = None
    expires: int | None = None
    priority: Priority | None = 0


class UserUpdate(msgspec.Struct):
    """The body of PATCH. Null or absent keeps, but empties organization, budget and expires."""

    email: str | None = None
    name: str | None = None
    current_password: str | None = None
    password: str | None = None
    role: int | None = None
    organization: int | None = None
    budget: Budget | None = None
    expires: int | None = None
    priority: Priority | None = None


@post("/admin/users", operation_id="createUser", tags=["Admin"], access="admin")
async def create_user(request: Request[Any, Any, State]) -> Response[bytes]:
    """Make a user."""
    body = await read_json(request, UserCreation)
    new = NewUser(
        email=bounded_text("email", body.email, LONGEST_EMAIL),
        name=_name(body.name),
        role_id=row_id(body.role),
        organization_id=None if body.organization is None else row_id(body.organization),
        budget=_micros(body.budget),
        expires_at=future("expires", body.expires),
        priority=body.priority or 0,
    )
    password = bounded_text("password", body.password, LONGEST_PASSWORD)
    return created({"id": await _users(request).create(actor_of(request), new, password)})


@get("/admin/users", operation_id="listUsers", tags=["Admin"], access="admin")
async def list_users(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the users, all or those of a role, of an organization or with an e-mail."""
    role, organization, page = gathered(
        lambda: optional_query_id(request, "role"),
        lambda: optional_query_id(request, "organization"),
        lambda: page_of(request, tuple(COLUMNS)),
    )
    email = query_text(request, "email") or None
    chosen = UserFilter(role_id=role, organization_id=organization, email=email)
    await _spent(request)
    return listed([_shown(each) for each in await _users(request).list(page.clause(COLUMNS), chosen)])


@get("/admin/users/{user:str}", operation_id="getUser", tags=["Admin"], access="admin")
async def get_user(request: Request[Any, Any, State], user: FromPath[str]) -> Response[bytes]:
    """Describe a user."""
    user_id = identifier("user", user)
    await _spent(request)
    return json_answer(_shown(await _users(request).get(user_id)))


@patch("/admin/users/{user:str}", operation_id="updateUser", tags=["Admin"], access="admin")
async def update_user(request: Request[Any, Any, State], user: FromPath[str]) -> Response[None]:
    """Change a user: without them, organization, budget and expiry are taken away."""
    user_id, body = await read_change(request, "user", user, UserUpdate)
    change = UserChange(
        email=None if body.email is None else bounded_text("email", body.email, LONGEST_EMAIL),
        name=_name(body.name),
        role_id=None if body.role is None else row_id(body.role),
        priority=body.priority,
        organization_id=None if body.organization is None else row_id(body.organization),
        budget=_micros(body.budget),
        expires_at=future("expires", body.expires),
    )
    if body.password is not None:
        bounded_text("password", body.password, LONGEST_PASSWORD)
    # What was spent until now is taken from the old budget, not from the new one.
    await _spent(request)
    await _users(request).update(actor_of(request), user_id, change, body.password, body.current_password)
    # Its routers name its organization as their owner.
    await request.app.state.gateway.reload()
    return no_content()


@delete("/admin/users/{user:str}", operation_id="deleteUser", tags=["Admin"], access="admin")
async def delete_user(request: Request[Any, Any, State], user: FromPath[str]) -> Response[None]:
    """Remove a user with its keys, routers and providers."""
    user_id = identifier("user", user)
    # Records that are not in the store yet would name the user afterwards.
    await _spent(request)
    await _users(request).delete(actor_of(request), user_id)
    await request.app.state.gateway.reload()
    return no_content()


def _users(request: Request[Any, Any, State]) -> Users:
    return Users(request.app.state.database, request.app.state.audit)


async def _spent(request: Request[Any, Any, State]) -> None:
    """Wait until the store knows of everything that was used so far."""
    await request.app.state.gateway.usage.flush()


def _name(name: str | None) -> str | None:
    # OpenGateLLM takes an empty one.
    return bounded_text("name", name, LONGEST_NAME) if name else name


def _micros(budget: float | None) -> int | None:
    """Return millionths of the currency, by the decimal digits that the budget is written with."""
    return None if budget is None else int((Decimal(repr(budget)) * MICROS).to_integral_value())


def _shown(user: User) -> dict[str, Any]:
    return {
        "object": "user",
        "id": user.id,
        "email": user.email,
        "name": user.name,
        # Those of an identity provider; this box has none.
        "sub": None,
        "iss": None,
        "role": user.role_id,
        "organization": user.organization_id,
        "budget": None if user.budget is None else user.budget / MICROS,
        "expires": None if user.expires_at is None else user.expires_at // 1000,
        "created": user.created_at // 1000,
        "updated": user.updated_at // 1000,
        "priority": user.priority,
    }
