"""The routes of OpenGateLLM that need a vector store, on a box without one: each says that it is not enabled."""

from __future__ import annotations

from typing import NamedTuple

from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ControllerRouterHandler

from appliance.errors import ApplianceError

_METHODS = {"GET": get, "POST": post, "PATCH": patch, "DELETE": delete}


class NotEnabledError(ApplianceError):
    """The box has not what the request needs, and no permission would change that."""

    status = 403
    type = "permission_error"

    def __init__(self, message: str = "Feature not enabled, please contact an administrator.") -> None:
        super().__init__(message)


class _Route(NamedTuple):
    method: str
    path: str
    operation_id: str
    tag: str


_DOCUMENT = "/documents/{document_id:str}"

ROUTES = (
    _Route("POST", "/collections", "createCollection", "Collections"),
    _Route("GET", "/collections", "listCollections", "Collections"),
    _Route("GET", "/collections/{collection_id:str}", "getCollection", "Collections"),
    _Route("PATCH", "/collections/{collection_id:str}", "updateCollection", "Collections"),
    _Route("DELETE", "/collections/{collection_id:str}", "deleteCollection", "Collections"),
    _Route("POST", "/documents", "createDocument", "Documents"),
    _Route("GET", "/documents", "listDocuments", "Documents"),
    _Route("GET", _DOCUMENT, "getDocument", "Documents"),
    _Route("DELETE", _DOCUMENT, "deleteDocument", "Documents"),
    _Route("POST", f"{_DOCUMENT}/chunks", "createDocumentChunks", "Documents"),
    _Route("GET", f"{_DOCUMENT}/chunks", "listDocumentChunks", "Documents"),
    _Route("GET", f"{_DOCUMENT}/chunks/{{chunk_id:str}}", "getDocumentChunk", "Documents"),
    _Route("DELETE", f"{_DOCUMENT}/chunks/{{chunk_id:str}}", "deleteDocumentChunk", "Documents"),
    _Route("GET", "/chunks/{document:str}", "listChunks", "Chunks"),
    _Route("GET", "/chunks/{document:str}/{chunk:str}", "getChunk", "Chunks"),
    _Route("POST", "/search", "search", "Search"),
    _Route("POST", "/parse-beta", "parse", "Parse"),
)


async def _refuse() -> Response[bytes]:
    """Not enabled on this box: it has no vector store."""
    raise NotEnabledError


def _handler(route: _Route) -> HTTPRouteHandler:
    handler: HTTPRouteHandler = _METHODS[route.method](
        route.path,
        status_code=200,
        operation_id=route.operation_id,
        tags=[route.tag],
        access="key",
        needs="vector store",
    )(_refuse)
    return handler


KNOWLEDGE: list[ControllerRouterHandler] = [_handler(route) for route in ROUTES]
