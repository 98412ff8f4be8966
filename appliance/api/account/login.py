"""/v1/auth/login."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.accounts.login import Logins
from appliance.api.answers import json_answer
from appliance.api.authentication import PUBLIC
from appliance.api.body import read_json
from appliance.api.client_address import source_of
from appliance.api.errors import dialect_of
from appliance.api.fields import bounded_text

# Longer than any e-mail or password may be: what is that long is wrong, not malformed.
LONGEST = 4096


class Login(msgspec.Struct):
    """The body of POST."""

    email: Annotated[str, msgspec.Meta(min_length=1)]
    password: Annotated[str, msgspec.Meta(min_length=1)]


@post("/auth/login", operation_id="login", tags=["Auth"], access=PUBLIC)
async def login(request: Request[Any, Any, State]) -> Response[bytes]:
    """Give a key that lives an hour (``session_seconds``) for an e-mail and a password."""
    body = await read_json(request, Login)
    email = bounded_text("email", body.email, LONGEST)
    password = bounded_text("password", body.password, LONGEST)
    logins: Logins = request.app.state.logins
    made = await logins.login(email, password, source_of(request), master=dialect_of(request).master_key)
    return json_answer({"id": made.id, "key": made.key})
