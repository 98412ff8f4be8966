"""POST /setup: who can read the box's console becomes its first administrator."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.accounts.setup import SetupCodes
from appliance.api.answers import created
from appliance.api.authentication import PUBLIC
from appliance.api.body import read_json
from appliance.api.client_address import source_of
from appliance.api.fields import bounded_text
from appliance.gateway.gateway import Gateway

# Longer than any may be: what is that long is wrong, not malformed.
LONGEST = 4096


class Setup(msgspec.Struct):
    """The body of POST."""

    code: str
    email: str
    password: str


@post("/setup", operation_id="setup", tags=["Auth"], access=PUBLIC)
async def setup(request: Request[Any, Any, State]) -> Response[bytes]:
    """Make the first administrator, and give its key, for the set-up code that the box shows; once."""
    body = await read_json(request, Setup)
    code = bounded_text("code", body.code, LONGEST)
    email = bounded_text("email", body.email.strip(), LONGEST)
    password = bounded_text("password", body.password, LONGEST)
    codes: SetupCodes = request.app.state.setup
    made = await codes.redeem(code, email, password, source_of(request))
    gateway: Gateway = request.app.state.gateway
    await gateway.reload()
    return created({"user": made.user_id, "id": made.key_id, "key": made.key, "email": email})
