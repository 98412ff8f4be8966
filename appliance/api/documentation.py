"""GET /openapi.json and /docs: the API described, with every asset from this box."""

from __future__ import annotations

import html
from typing import Any

import msgspec
import swagger_ui_bundle
from litestar import Request, Response, Router, get
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import FromPath
from litestar.routes import BaseRoute
from litestar.types import ControllerRouterHandler

from appliance import __version__
from appliance.api.operations import describe_bodies, describe_mounts, without_tags

# What the page needs of the bundle; its own start page would load a sample from the internet.
ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}

# The bundle's version is part of its assets' addresses: an upgraded box must not meet old ones in a cache.
ASSETS_PATH = f"/docs/assets/{swagger_ui_bundle.swagger_ui_path.name}"

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title} API</title>
<link rel="stylesheet" href="{assets}/swagger-ui.css">
<link rel="icon" type="image/png" href="{assets}/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{assets}/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""

# validatorUrl null: by default the page would ask a public service to validate the document.
START = """SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", validatorUrl: null,
  deepLinking: true, presets: [SwaggerUIBundle.presets.apis]});
"""

# The browser itself refuses to load anything from elsewhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


def openapi_config(title: str) -> OpenAPIConfig:
    """Describe the API of a box that calls itself ``title``."""
    return OpenAPIConfig(
        title=title,
        version=__version__,
        description="Chat, completions, embeddings, reranking and transcription, on this box. "
        "/v1 serves the union of all APIs; /compressa/v1, /compactifai/v1 and "
        "/opengatellm/v1 keep to the letter of theirs.",
        components=Components(
            security_schemes={"key": SecurityScheme(type="http", scheme="bearer")},
        ),
        security=[{"key": []}],
        use_handler_docstrings=True,
        # The document and the page are served below, not by the framework's plugins: those load from a CDN.
        render_plugins=[JsonRenderPlugin()],
        openapi_router=_Unserved(path="/unserved", route_handlers=[]),
    )


class _Unserved(Router):
    """Takes none of the routes that the framework would serve the document by."""

    def register(self, value: ControllerRouterHandler) -> list[BaseRoute]:
        """Leave a route out."""
        return []


@get("/openapi.json", include_in_schema=False, access="public")
async def openapi_document(request: Request[Any, Any, State]) -> Response[bytes]:
    """Answer the OpenAPI document."""
    state = request.app.state
    if "openapi_document" not in state:
        document = without_tags(request.app.openapi_schema.to_schema(), state["settings"].hidden_routers)
        document = describe_bodies(document)
        document = describe_mounts(document, request.app.routes)
        state["openapi_document"] = msgspec.json.encode(document)
    return Response(state["openapi_document"], media_type="application/json")


@get("/docs", include_in_schema=False, access="public")
async def documentation(request: Request[Any, Any, State]) -> Response[str]:
    """Answer the documentation page."""
    title = html.escape(request.app.state.settings.app_title)
    page = PAGE.format(title=title, assets=ASSETS_PATH)
    return Response(
        page, media_type="text/html", headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    )


@get("/docs/start.js", include_in_schema=False, access="public")
async def documentation_start() -> Response[str]:
    """Answer the script that starts the page."""
    return Response(START, media_type="text/javascript")


@get(ASSETS_PATH + "/{name:str}", include_in_schema=False, access="public")
async def documentation_asset(name: FromPath[str]) -> Response[bytes]:
    """Answer one of the page's assets."""
    if name not in ASSETS:
        raise NotFoundException("Not Found")
    content = (swagger_ui_bundle.swagger_ui_path / name).read_bytes()
    return Response(content, media_type=ASSETS[name], headers={"Cache-Control": "max-age=86400"})
