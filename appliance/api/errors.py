"""From an exception to an answer: the only place that shapes error responses."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from appliance.api.dialect import UNION, Dialect
from appliance.api.field_errors import InvalidFieldError, UnprocessableError
from appliance.errors import ApplianceError
from appliance.gateway.errors import ModelNotFoundError

log = logging.getLogger(__name__)

HTTP_TEXTS = {
    404: ("not_found_error", "Not Found"),
    405: ("invalid_request_error", "Method Not Allowed"),
    413: ("invalid_request_error", "The request body is too large."),
}


def dialect_of(request: Request[Any, Any, Any]) -> Dialect:
    """Return the dialect of the mount that this request came to; the union outside of mounts."""
    handler = request.scope.get("route_handler")
    dialect: Dialect = handler.opt.get("dialect", UNION) if handler is not None else UNION
    return dialect


def error_response(request: Request[Any, Any, Any], error: ApplianceError) -> Response[bytes]:
    """Answer with an error of ours, in the mount's shape; an internal one goes to the log too."""
    if error.status >= 500 and error.status != 503:
        log.error("%s %s failed: %s", request.method, request.url.path, error, exc_info=error)
    if isinstance(error, InvalidFieldError) and _reads_lists(request):
        error = UnprocessableError(error.errors)
    if isinstance(error, ModelNotFoundError):
        error = _unknown_model(request, error)
    error = dialect_of(request).translated(error)
    return _shaped(request, error)


def _reads_lists(request: Request[Any, Any, Any]) -> bool:
    """Tell whether wrong fields are answered with FastAPI's 422 list: on a mount, or on a route (``unprocessable``)."""
    handler = request.scope.get("route_handler")
    return dialect_of(request).unprocessable_fields or bool(handler and handler.opt.get("unprocessable"))


def _unknown_model(request: Request[Any, Any, Any], error: ModelNotFoundError) -> ApplianceError:
    if request.method == "POST":
        return dialect_of(request).unknown_model(error)
    error.type = "not_found_error"  # the model is what was asked for, not a field of the request
    return error


def _shaped(request: Request[Any, Any, Any], error: ApplianceError) -> Response[bytes]:
    detail: Any = error.errors if isinstance(error, UnprocessableError) else None
    handler = request.scope.get("route_handler")
    if detail is None and handler is not None and handler.opt.get("always_detail"):
        detail = error.message  # clients of this route read nothing else
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
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
    shown = ApplianceError(text, status=error.status_code, type=kind)
    response = _shaped(request, shown)
    response.headers.update(error.headers or {})
    return response


def internal_error_response(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer 500 with a bland text; the cause goes to the log."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _shaped(request, ApplianceError("The server had an error while processing your request."))
