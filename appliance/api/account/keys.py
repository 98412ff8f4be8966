"""/v1/me/keys: the caller's own keys."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.params import FromPath

from appliance.accounts.issued_keys import COLUMNS, NAME_LENGTH, IssuedKey
from appliance.api.admin.tokens import issued_keys
from appliance.api.answers import created, json_answer, listed, no_content
from appliance.api.authentication import account_of, actor_of
from appliance.api.body import read_json
from appliance.api.errors import dialect_of
from appliance.api.fields import Name, bounded_text, future, identifier
from appliance.api.paging import page_of

# No user has it: the master key of OpenGateLLM's mount has no keys of its own there.
NOBODY = 0


class NewOwnKey(msgspec.Struct):
    """The body of POST; ``name`` may be empty, ``expires`` is in seconds."""

    name: Name
    expires: int | None = None


@post("/me/keys", operation_id="createKey", tags=["Me"], access="key")
async def create_key(request: Request[Any, Any, State]) -> Response[bytes]:
    """Make a key for oneself; its text is shown this once."""
    body = await read_json(request, NewOwnKey)
    name, expires_at = bounded_text("name", body.name, NAME_LENGTH, least=0), future("expires", body.expires)
    made = await issued_keys(request).create(actor_of(request), owner_of(request), name, expires_at)
    return created({"id": made.id, "token": made.key, "key": made.key})


@get("/me/keys", operation_id="listKeys", tags=["Me"], access="key")
async def list_keys(request: Request[Any, Any, State]) -> Response[bytes]:
    """List one's own keys."""
    clause = page_of(request, tuple(COLUMNS)).clause(COLUMNS)
    return listed([_shown(each) for each in await issued_keys(request).list(clause, owner_of(request))])


@get("/me/keys/{key:str}", operation_id="getKey", tags=["Me"], access="key")
async def get_key(request: Request[Any, Any, State], key: FromPath[str]) -> Response[bytes]:
    """Describe one of one's own keys."""
    return json_answer(_shown(await issued_keys(request).get(identifier("key", key), owner_of(request))))


@delete("/me/keys/{key:str}", operation_id="deleteKey", tags=["Me"], access="key")
async def delete_key(request: Request[Any, Any, State], key: FromPath[str]) -> Response[None]:
    """Delete one of one's own keys."""
    await issued_keys(request).delete(actor_of(request), identifier("key", key), owner_of(request))
    return no_content()


@post("/me/keys/{key:str}/regenerate", operation_id="regenerateKey", tags=["Me"], access="key")
async def regenerate_key(request: Request[Any, Any, State], key: FromPath[str]) -> Response[bytes]:
    """Replace the text of one of one's own keys; its name, rights and expiry stay."""
    key_id = identifier("key", key)
    made = await issued_keys(request).regenerate(actor_of(request), key_id, owner_of(request))
    return json_answer({"id": made.id, "token": made.key, "key": made.key})


def owner_of(request: Request[Any, Any, State]) -> int:
    """Return whose keys the request may see; NOBODY for the master key of OpenGateLLM's mount."""
    account = account_of(request)
    return NOBODY if dialect_of(request).exempts(account) else account.user_id


def _shown(key: IssuedKey) -> dict[str, Any]:
    return {
        "object": "key",
        "id": key.id,
        "name": key.name,
        "token": key.hint,
        "expires": None if key.expires_at is None else key.expires_at // 1000,
        "created": key.created_at // 1000,
    }
