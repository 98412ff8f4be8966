"""A registry as Prometheus reads it."""

from __future__ import annotations

import asyncio

from litestar import Response
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

# When each series began: as many lines again, of use to nobody here.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no type for it

MEDIA_TYPE = "text/plain; version=0.0.4"  # the framework adds the charset


async def rendered(registry: CollectorRegistry) -> Response[bytes]:
    """Answer with every series of a registry. Writing thousands of lines takes its time: not on the loop."""
    return Response(await asyncio.to_thread(generate_latest, registry), media_type=MEDIA_TYPE)
