"""From an HTTP request to the gateway: the one way in which every route that needs a model begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

import msgspec
from litestar import Request

from appliance.api.authentication import account_of
from appliance.api.body import decoded, peeked, read_body
from appliance.api.dialect import Dialect
from appliance.api.errors import dialect_of
from appliance.api.field_errors import UnprocessableError
from appliance.api.validation import text_length_error
from appliance.gateway.call import ModelCall
from appliance.gateway.errors import ForbiddenModelError, ModelNotFoundError, NoModelError, WrongTaskError
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


async def begin(
    request: Request[Any, Any, Any],
    body_type: type[B],
    route: Route,
    *,
    trimmed: bool = False,
    check: Callable[[B], object] | None = None,
) -> tuple[ModelCall, B]:
    """Admit a request to the model that its JSON body names, and check the body's fields.

    ``trimmed`` leaves out the space around the name, of which something must be left (422). ``check`` raises for
    what its type does not state.
    Raises what ``admitted``, ``read_body``, ``decoded`` and ``check`` raise.
    """
    raw = await read_body(request)
    named = await peeked(raw, _Named)
    # Without a name there is nothing to call: decoding says what is wrong, or a default is meant.
    name = named.model if named is not None and isinstance(named.model, str) else None
    if name is not None and trimmed:
        if not name.strip():
            raise UnprocessableError([text_length_error(["body", "model"], name, least=1)])
        name = name.strip()

    async def checked() -> B:
        body = await decoded(raw, body_type)
        if check is not None:
            check(body)
        return body

    return await admitted(request, name, route, checked)


async def admitted(
    request: Request[Any, Any, Any], name: str | None, route: Route, check: Callable[[], Awaitable[B]]
) -> tuple[ModelCall, B]:
    """Admit a request to a model, and return its body, which ``check`` reads.

    Limits come first, as OpenGateLLM has it: a request counts, and its answer shows the limits, also when the
    body is wrong. Then the body, and last whether there is such a model for the route.

    Raises what ``enter`` and ``check`` raise.
    """
    if name is None:
        body = await check()
        return enter(request, None, route), body
    try:
        call = enter(request, name, route)
    except (ForbiddenModelError, ModelNotFoundError, WrongTaskError) as error:
        # Where forbidden models are hidden, one is like a model that does not exist in this too.
        told = isinstance(error, ForbiddenModelError) and not dialect_of(request).hide_forbidden_models
        if not told:
            await check()
        raise
    return call, await check()


def enter(request: Request[Any, Any, Any], name: str | None, route: Route) -> ModelCall:
    """Admit a request to a model, None being the default for ``route``. It is closed when the request ends.

    Raises ModelNotFoundError, ForbiddenModelError, LimitExceededError, WrongTaskError, NoModelError.
    """
    gateway: Gateway = request.app.state.gateway
    account = account_of(request)
    dialect = dialect_of(request)
    exempt = dialect.exempts(account)
    scope: MutableMapping[str, Any] = request.scope  # type: ignore[assignment] # our own key beside ASGI's

    def begun(call: ModelCall) -> None:
        scope[_CALL] = call

    if name is None or (name == ANY_MODEL and dialect.default_model):
        try:
            name = gateway.default_model(account, route, exempt=exempt)
        except WrongTaskError as error:
            raise NoModelError(error.message, param="model") from None
    return gateway.call(
        account,
        name,
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
