"""From an HTTP request to the gateway: the one way in which every route that needs a model begins."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, TypeVar

import msgspec
from litestar import Request

from appliance.api.authentication import account_of
from appliance.api.body import decoded, peeked, read_body
from appliance.api.dialect import Dialect
from appliance.api.errors import dialect_of
from appliance.gateway.call import ModelCall
from appliance.gateway.gateway import Gateway, Route

B = TypeVar("B")

CHAT = Route("chat completions", ("text-generation", "image-text-to-text"))
EMBEDDING = Route("embeddings", ("text-embeddings-inference",))
RERANKING = Route("reranking", ("text-classification",))
TRANSCRIPTION = Route("transcription", ("automatic-speech-recognition",))
OCR = Route("reading documents", ("image-to-text",))

# A name that means the default model.
ANY_MODEL = "default/not-specified"

_CALL = "appliance.call"


class _Named(msgspec.Struct):
    """What is looked at before the whole body."""

    model: Any = None


async def begin(request: Request[Any, Any, Any], body_type: type[B], route: Route) -> tuple[ModelCall, B]:
    """Admit a request to the model that its JSON body names, then check the body's fields.

    Limits come first, as OpenGateLLM has it: a request counts, and its answer shows the limits, also when the
    body is wrong. Raises what ``enter``, ``read_body`` and ``decoded`` raise.
    """
    raw = await read_body(request)
    named = await peeked(raw, _Named)
    if named is None or not isinstance(named.model, str):
        # There is nothing to call: decoding says what is wrong, or a default is meant.
        body = await decoded(raw, body_type)
        return enter(request, None, route), body
    call = enter(request, named.model, route)
    return call, await decoded(raw, body_type)


def enter(request: Request[Any, Any, Any], name: str | None, route: Route) -> ModelCall:
    """Admit a request to a model, None being the default for ``route``. It is closed when the request ends.

    Raises ModelNotFoundError, ForbiddenModelError, LimitExceededError, WrongTaskError.
    """
    gateway: Gateway = request.app.state.gateway
    account = account_of(request)
    dialect = dialect_of(request)
    exempt = dialect.exempts(account)
    scope: MutableMapping[str, Any] = request.scope  # type: ignore[assignment] # our own key beside ASGI's

    def begun(call: ModelCall) -> None:
        scope[_CALL] = call

    return gateway.call(
        account,
        gateway.default_model(account, route, exempt=exempt)
        if name is None or (name == ANY_MODEL and dialect.default_model)
        else name,
        route,
        endpoint=_endpoint(scope, dialect),
        method=request.method,
        exempt=exempt,
        begun=begun,
    )


def _endpoint(scope: MutableMapping[str, Any], dialect: Dialect) -> str:
    """Return the route as usage records name it: OpenGateLLM's path, by whatever mount or family it was called.

    By the route's template: the path itself may have more slashes.
    """
    path: str = scope["path_template"]
    if path.endswith("/rerank"):
        return "/v1/rerank"
    return "/v1" + path.removeprefix(dialect.prefix)


def call_of(scope: MutableMapping[str, Any]) -> ModelCall | None:
    """Return the call of a request, None when it has none (yet)."""
    call: ModelCall | None = scope.get(_CALL)
    return call
