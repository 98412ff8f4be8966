"""GET /health, /health/ready and /version: open to all, and saying nothing that is not."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State

from appliance import __version__
from appliance.gateway.catalog import Catalog
from appliance.storage.database import Database


class ModelState(msgspec.Struct):
    """Whether one model can be asked: loading, ready or failed."""

    id: str
    state: str


@get("/healthcheck", include_in_schema=False, public=True)
async def healthcheck() -> dict[str, Any]:
    """Answer as /health does, under its older name."""
    return alive()


@get("/health", operation_id="health", tags=["Monitoring"], public=True)
async def health() -> dict[str, Any]:
    """Answer that the process lives."""
    return alive()


def alive() -> dict[str, Any]:
    """Return the body of both."""
    # No prompt compression is served yet, and clients of that API read this key.
    return {"status": "ok", "compression_server": False}


@get("/health/ready", operation_id="ready", tags=["Monitoring"], public=True)
async def ready(request: Request[Any, Any, State]) -> Response[bytes]:
    """Answer 200 when the store answers and every installed model has been loaded, else 503."""
    catalog: Catalog = request.app.state.catalog
    database: Database = request.app.state.database
    await database.read(lambda db: db.execute("SELECT 1").fetchone())
    models = [
        ModelState(model.manifest.name, _state(model.engine, model.error)) for model in catalog.models()
    ]
    is_ready = catalog.ready()
    return Response(
        msgspec.json.encode({"status": "ready" if is_ready else "loading", "models": models}),
        status_code=200 if is_ready else 503,
        media_type="application/json",
        headers={} if is_ready else {"Retry-After": "1"},
    )


@get("/version", operation_id="version", tags=["Monitoring"], public=True)
async def version() -> dict[str, str]:
    """Name the program's version."""
    return {"version": __version__}


def _state(engine: object | None, error: str | None) -> str:
    if error is not None:
        return "failed"
    return "loading" if engine is None else "ready"
