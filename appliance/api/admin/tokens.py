"""/v1/admin/tokens: the keys of all users."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.params import FromPath

from appliance.accounts.issued_keys import COLUMNS, NAME_LENGTH, IssuedKey, IssuedKeys
from appliance.api.answers import created, json_answer, listed, no_content
from appliance.api.authentication import actor_of
from appliance.api.body import read_json
from appliance.api.fields import Name, future, identifier, row_id, trimmed
from appliance.api.paging import gathered, optional_query_id, page_of


class NewToken(msgspec.Struct):
    """The body of POST; ``expires`` in seconds."""

    name: Name
    user: int
    expires: int | None = None


@post("/admin/tokens", operation_id="createToken", tags=["Admin"], access="admin")
async def create_token(request: Request[Any, Any, State]) -> Response[bytes]:
    """Make a key for a user; its text is shown this once."""
    body = await read_json(request, NewToken)
    name, expires_at = trimmed("name", body.name, NAME_LENGTH), future("expires", body.expires)
    made = await issued_keys(request).create(actor_of(request), row_id(body.user), name, expires_at)
    return created({"id": made.id, "token": made.key})


@get("/admin/tokens", operation_id="listTokens", tags=["Admin"], access="admin")
async def list_tokens(request: Request[Any, Any, State]) -> Response[bytes]:
    """List the keys, all or those of one user."""
    user, page = gathered(
        lambda: optional_query_id(request, "user"), lambda: page_of(request, tuple(COLUMNS))
    )
    return listed([_shown(each) for each in await issued_keys(request).list(page.clause(COLUMNS), user)])


@get("/admin/tokens/{token:str}", operation_id="getToken", tags=["Admin"], access="admin")
async def get_token(request: Request[Any, Any, State], token: FromPath[str]) -> Response[bytes]:
    """Describe a key."""
    return json_answer(_shown(await issued_keys(request).get(identifier("token", token))))


@delete("/admin/tokens/{token:str}", operation_id="deleteToken", tags=["Admin"], access="admin")
async def delete_token(request: Request[Any, Any, State], token: FromPath[str]) -> Response[None]:
    """Delete a key; ``user``, when given, must be its owner."""
    key_id, user = gathered(lambda: identifier("token", token), lambda: optional_query_id(request, "user"))
    await issued_keys(request).delete(actor_of(request), key_id, user)
    return no_content()


@post("/admin/tokens/{token:str}/regenerate", operation_id="regenerateToken", tags=["Admin"], access="admin")
async def regenerate_token(request: Request[Any, Any, State], token: FromPath[str]) -> Response[bytes]:
    """Replace a key's text; its name, rights and expiry stay."""
    made = await issued_keys(request).regenerate(actor_of(request), identifier("token", token))
    return json_answer({"id": made.id, "token": made.key, "key": made.key})


def issued_keys(request: Request[Any, Any, State]) -> IssuedKeys:
    """Return the keys of this service."""
    state = request.app.state
    return IssuedKeys(state.database, state.keyring, state.audit, state.settings.key_max_days)


def _shown(key: IssuedKey) -> dict[str, Any]:
    return {
        "object": "token",
        "id": key.id,
        "name": key.name,
        "token": key.hint,
        "user": key.user_id,
        "expires": None if key.expires_at is None else key.expires_at // 1000,
        "created": key.created_at // 1000,
    }
