"""Which types of providers can stand behind which types of routers."""

from __future__ import annotations

from appliance.gateway.routing.errors import RoutingError
from appliance.gateway.routing.records import MODEL_TYPES, ModelType, ProviderType
from appliance.packs.manifest import Task

PAIRS: dict[ModelType, frozenset[ProviderType]] = {
    "text-generation": frozenset({"albert", "mistral", "openai", "vllm", "appliance", "local"}),
    "image-text-to-text": frozenset({"albert", "mistral", "openai", "vllm", "appliance"}),
    "text-embeddings-inference": frozenset({"albert", "openai", "tei", "vllm", "appliance", "local"}),
    "automatic-speech-recognition": frozenset({"albert", "mistral", "openai", "vllm", "appliance", "local"}),
    "image-to-text": frozenset({"mistral"}),
    "text-classification": frozenset({"albert", "tei", "appliance", "local"}),
}
# A provider that exists may also be moved to these: vLLM servers do rerank.
MOVES: dict[ModelType, frozenset[ProviderType]] = {
    **PAIRS,
    "text-classification": PAIRS["text-classification"] | {"vllm"},
}


def require_pairing(provider_type: ProviderType, router_type: ModelType) -> None:
    """Raise RoutingError (400) for a provider that cannot serve such a router."""
    if provider_type not in PAIRS[router_type]:
        raise unpaired(provider_type, router_type)


def require_task(task: Task, router_type: ModelType) -> None:
    """Raise RoutingError (400) for a pack that does another task than such a router."""
    if MODEL_TYPES.get(task) != router_type:
        raise unpaired("local", router_type)


def unpaired(provider_type: ProviderType, router_type: ModelType) -> RoutingError:
    """Return the refusal of such a pair."""
    return RoutingError(f"Invalid model provider type {provider_type} for {router_type} router.", status=400)
