"""What a model is, before it becomes a provider: asked of its server, or read from its pack."""

from __future__ import annotations

import aiohttp
import msgspec

from appliance.gateway.catalog import Catalog
from appliance.gateway.errors import ModelNotFoundError, ProbeFailedError
from appliance.gateway.routing.local_packs import parameters, vector_size
from appliance.gateway.routing.pairing import require_task
from appliance.gateway.routing.providers import ProviderSpec
from appliance.gateway.routing.records import ModelType
from appliance.gateway.upstream.probe import probe

# A server that takes longer to list its models is none to send requests to.
PROBE_SECONDS = 30.0


async def measured(
    spec: ProviderSpec, router_type: ModelType, client: aiohttp.ClientSession, catalog: Catalog
) -> ProviderSpec:
    """Return the provider with the sizes of its model, and the parameters of a pack where none are given.

    Raises ProbeFailedError (424) when the server does not answer or the model is not there, RoutingError (400)
    for a pack of another task.
    """
    if spec.type == "local":
        try:
            manifest = catalog.find(spec.model_name).manifest
        except ModelNotFoundError:
            raise ProbeFailedError(spec.model_name) from None
        require_task(manifest.task, router_type)
        billions = parameters(manifest)
        return msgspec.structs.replace(
            spec,
            total_params=spec.total_params or billions,
            active_params=spec.active_params or billions,
            max_context_length=manifest.context_length or None,
            vector_size=vector_size(manifest),
        )
    probed = await probe(
        client,
        spec.type,
        spec.url or "",
        spec.key,
        spec.model_name,
        router_type == "text-embeddings-inference",
        min(float(spec.timeout), PROBE_SECONDS),
    )
    return msgspec.structs.replace(
        spec, max_context_length=probed.max_context_length, vector_size=probed.vector_size
    )
