"""GET /health, /health/ready and /version: open to all, so they count models and name none."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State

from appliance import __version__
from appliance.gateway.catalog import Catalog
from appliance.storage.database import Database


class Readiness(msgspec.Struct, kw_only=True):
    """How many installed models can be asked, are being loaded, or cannot be loaded."""

    status: Literal["ready", "degraded", "loading"]
    ready: int
    loading: int
    failed: int


@get("/healthcheck", include_in_schema=False, access="public")
async def healthcheck() -> dict[str, Any]:
    """Answer as /health does, under its older name."""
    return alive()


@get("/health", operation_id="health", tags=["Monitoring"], access="public")
async def health() -> dict[str, Any]:
    """Answer that the process lives."""
    return alive()


def alive() -> dict[str, Any]:
    """Return the body of both."""
    # No prompt compression is served yet, and clients of that API read this key.
    return {"status": "ok", "compression_server": False}


@get("/health/ready", operation_id="ready", tags=["Monitoring"], access="public")
async def ready(request: Request[Any, Any, State]) -> Response[bytes]:
    """Answer 200 when the store answers and nothing is being loaded, else 503; ``degraded`` when a model failed."""
    catalog: Catalog = request.app.state.catalog
    database: Database = request.app.state.database
    await database.read(lambda db: db.execute("SELECT 1").fetchone())
    states = [model.state for model in catalog.models()]
    loading, failed = states.count("loading"), states.count("failed")
    readiness = Readiness(
        status="loading" if loading else "degraded" if failed else "ready",
        ready=states.count("ready"),
        loading=loading,
        failed=failed,
    )
    return Response(
        msgspec.json.encode(readiness),
        status_code=503 if loading else 200,
        media_type="application/json",
        headers={"Retry-After": "1"} if loading else {},
    )


@get("/version", operation_id="version", tags=["Monitoring"], access="public")
async def version() -> dict[str, str]:
    """Name the program's version."""
    return {"version": __version__}
