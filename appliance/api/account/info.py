"""/v1/me/info: what users may know and change about themselves."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get, patch
from litestar.datastructures import State

from appliance.accounts.errors import AccountError
from appliance.accounts.own_account import OwnChange, change_own_account
from appliance.accounts.permissions import PERMISSIONS
from appliance.accounts.users import LONGEST_EMAIL, LONGEST_PASSWORD, RESERVED_EMAIL, Users
from appliance.api.answers import json_answer, no_content
from appliance.api.authentication import account_of, actor_of
from appliance.api.body import read_json
from appliance.api.errors import dialect_of
from appliance.api.fields import LONGEST_NAME, bounded_text
from appliance.gateway.gateway import Gateway
from appliance.gateway.routing.records import LIMIT_TYPES

MICROS = 1_000_000


class OwnChanges(msgspec.Struct):
    """The body of PATCH; null or absent keeps."""

    name: str | None = None
    email: str | None = None
    current_password: str | None = None
    password: str | None = None


@get("/me/info", operation_id="getInfo", tags=["Me"], access="key", expired_users=True)
async def get_info(request: Request[Any, Any, State]) -> Response[bytes]:
    """Tell the caller who it is and what it may ask for; also when it has expired."""
    account = account_of(request)
    gateway: Gateway = request.app.state.gateway
    if dialect_of(request).exempts(account):
        return json_answer(_master_info(gateway))
    await gateway.usage.flush()
    user = await Users(request.app.state.database, request.app.state.audit).get(account.user_id)
    return json_answer(
        {
            "object": "userInfo",
            "id": user.id,
            "email": user.email,
            "name": user.name,
            "organization": user.organization_id,
            "budget": None if user.budget is None else user.budget / MICROS,
            "permissions": [each for each in PERMISSIONS if each in account.permissions],
            "limits": [
                _limit(router.id, kind, value)
                for router, kind, value in gateway.table.limits_of_role(user.role_id)
            ],
            "expires": None if user.expires_at is None else user.expires_at // 1000,
            "priority": user.priority,
            "created": user.created_at // 1000,
            "updated": user.updated_at // 1000,
        }
    )


@patch("/me/info", operation_id="updateInfo", tags=["Me"], access="key")
async def update_info(request: Request[Any, Any, State]) -> Response[None]:
    """Change one's own name, e-mail or password."""
    body = await read_json(request, OwnChanges)
    change = OwnChange(
        email=None if body.email is None else bounded_text("email", body.email, LONGEST_EMAIL),
        name=_name(body.name),
        password=None if body.password is None else bounded_text("password", body.password, LONGEST_PASSWORD),
        current_password=body.current_password,
    )
    account = account_of(request)
    if dialect_of(request).exempts(account):
        raise AccountError("User not found.", status=404)
    state = request.app.state
    await change_own_account(
        state.database, state.audit, state.logins, actor_of(request), account.user_id, change
    )
    return no_content()


def _name(name: str | None) -> str | None:
    """Return a name as it is; it may be empty."""
    return name if not name else bounded_text("name", name, LONGEST_NAME)


def _master_info(gateway: Gateway) -> dict[str, Any]:
    """Return what OpenGateLLM's clients see of the box's own key: user 0, who may do everything."""
    return {
        "object": "userInfo",
        "id": 0,
        "email": RESERVED_EMAIL,
        "name": RESERVED_EMAIL,
        "organization": 0,
        "budget": None,
        "permissions": list(PERMISSIONS),
        "limits": [_limit(router, kind, None) for router in gateway.table.routers for kind in LIMIT_TYPES],
        "expires": None,
        "priority": 0,
        "created": 0,
        "updated": 0,
    }


def _limit(router: int, kind: str, value: int | None) -> dict[str, Any]:
    return {"router": router, "type": kind, "value": value}
