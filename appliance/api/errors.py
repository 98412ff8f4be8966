"""From an exception to an answer: the only place that shapes error responses."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler

from appliance.accounts.errors import AuthenticationError
from appliance.api.authentication import PUBLIC, presented_keys
from appliance.api.dialect import Dialect, dialect_at
from appliance.api.field_errors import FieldError, InvalidFieldError, UnprocessableError, UnreadableBodyError
from appliance.api.published import RedirectError, has_other_scheme, slashless
from appliance.errors import ApplianceError
from appliance.gateway.errors import InsufficientBudgetError, ModelNotFoundError

log = logging.getLogger(__name__)

HTTP_TEXTS = {
    404: ("not_found_error", "Not Found"),
    405: ("invalid_request_error", "Method Not Allowed"),
    413: ("invalid_request_error", "The request body is too large."),
}


def dialect_of(request: Request[Any, Any, Any]) -> Dialect:
    """Return the dialect of the mount that this request came to; the union outside of mounts."""
    dialect: Dialect | None = _option(request, "dialect")
    return dialect_at(request.scope["path"]) if dialect is None else dialect


def _option(request: Request[Any, Any, Any], name: str) -> Any:
    """Return what the request's route says of itself under ``name``; None without a route."""
    handler: BaseRouteHandler | None = request.scope.get("route_handler")
    return None if handler is None else handler.opt.get(name)


def error_response(request: Request[Any, Any, Any], error: ApplianceError) -> Response[bytes]:
    """Answer with an error of ours, in the mount's shape; an internal one goes to the log too."""
    if isinstance(error, RedirectError):
        return Response(b"", status_code=error.status, headers={"Location": error.location})
    request.app.state.metrics.refused(error)
    if error.status >= 500 and error.status != 503:
        log.error("%s %s failed: %s", request.method, _path(request), error, exc_info=error)
    if isinstance(error, InvalidFieldError | UnreadableBodyError) and _reads_lists(request, error):
        error = UnprocessableError(error.errors)
    elif isinstance(error, ModelNotFoundError):
        error = _unknown_model(request, error)
    elif isinstance(error, AuthenticationError):
        error = _refused_key(request, error)
    error = dialect_of(request).translated(error)
    return _shaped(request, error)


def _reads_lists(request: Request[Any, Any, Any], error: ApplianceError) -> bool:
    """Tell whether wrong fields are answered with FastAPI's 422 list.

    So they are on a mount, and on a route with ``unprocessable``: False, True, or "all", which includes bodies
    that are no JSON.
    """
    route = _option(request, "unprocessable")
    if dialect_of(request).unprocessable_fields or route == "all":
        return True
    return bool(route) and not isinstance(error, UnreadableBodyError)


def _unknown_model(request: Request[Any, Any, Any], error: ModelNotFoundError) -> ApplianceError:
    if request.method == "POST" or dialect_of(request).detail_only:
        return dialect_of(request).unknown_model(error)
    error.type = "not_found_error"  # the model is what was asked for, not a field of the request
    return error


def _refused_key(request: Request[Any, Any, Any], error: AuthenticationError) -> ApplianceError:
    """Return what the mount says of the key that the guard refused; other refusals are as they are."""
    dialect = dialect_of(request)
    by_guard = request.scope.get("user") is None and _option(request, "access") != PUBLIC
    if not (by_guard and dialect.detail_only):
        return error
    if not presented_keys(request) or has_other_scheme(request):
        return AuthenticationError("Not authenticated")
    return AuthenticationError(error.message, status=dialect.bad_key_status)


def _listed(request: Request[Any, Any, Any], error: UnprocessableError) -> list[FieldError]:
    """Return the list of wrong fields: whole where OpenGateLLM's clients call, else the three keys that others know."""
    if dialect_of(request).unprocessable_fields or _option(request, "unprocessable") == "all":
        return error.errors
    return [FieldError(each.loc, each.msg, each.type) for each in error.errors]


def _shaped(request: Request[Any, Any, Any], error: ApplianceError) -> Response[bytes]:
    detail: Any = _listed(request, error) if isinstance(error, UnprocessableError) else None
    if detail is None and _option(request, "always_detail"):
        detail = error.message  # clients of this route read nothing else
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.code == InsufficientBudgetError.code:
        # By itself OpenAI's client tries a 429 again, after as long as it says; a spent budget stays spent.
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        msgspec.json.encode(dialect_of(request).error_body(error, detail)),
        status_code=error.status,
        media_type="application/json",
        headers=headers,
    )


def http_error_response(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer with an error of the web framework: unknown route, wrong method, body too large."""
    kind, text = HTTP_TEXTS.get(error.status_code, ("invalid_request_error", error.detail))
    if error.status_code >= 500:
        return internal_error_response(request, error)
    if error.status_code == 405 and dialect_of(request).detail_only:
        location = slashless(request.scope)  # FastAPI looks for the path before it looks at the method
        if location is not None:
            return error_response(request, RedirectError(location))
    shown = ApplianceError(text, status=error.status_code, type=kind)
    response = _shaped(request, shown)
    response.headers.update(error.headers or {})
    if "allow" in response.headers and dialect_of(request).detail_only:
        allowed = set(response.headers["allow"].split(", ")) - {"OPTIONS"}  # which is a 405 there too
        response.headers["allow"] = ", ".join(sorted(allowed))
    return response


def internal_error_response(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer 500 with a bland text; the cause goes to the log."""
    log.error("%s %s failed", request.method, _path(request), exc_info=error)
    if dialect_of(request).detail_only:
        return _plain_failure(request)
    return _shaped(request, ApplianceError("The server had an error while processing your request."))


def _path(request: Request[Any, Any, Any]) -> str:
    """Return the path as it came, which has no line ends; decoded it could begin a line of its own in the log."""
    return request.scope["raw_path"].decode("latin-1")


def _plain_failure(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Answer as OpenGateLLM does: its ``newer`` routes (and those with a ``denied``) in JSON, the others in text."""
    if _option(request, "newer") or _option(request, "denied"):
        failure = ApplianceError("An unexpected error occurred")
        return _shaped(request, failure)
    return Response(b"Internal Server Error", status_code=500, media_type="text/plain")
