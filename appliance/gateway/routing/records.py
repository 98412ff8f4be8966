"""Routers and providers as the gateway knows them. Names and values are OpenGateLLM's; times UTC milliseconds."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from appliance.packs.manifest import Task

ModelType = Literal[
    "automatic-speech-recognition",
    "image-text-to-text",
    "image-to-text",
    "text-embeddings-inference",
    "text-generation",
    "text-classification",
]
# "local" runs an installed pack; "appliance" is another box like this one.
ProviderType = Literal["local", "albert", "openai", "mistral", "tei", "vllm", "appliance"]
Strategy = Literal["shuffle", "least_busy"]
QosMetric = Literal["ttft", "latency", "inflight", "performance"]
LimitType = Literal["tpm", "tpd", "rpm", "rpd"]

LIMIT_TYPES: tuple[LimitType, ...] = get_args(LimitType)

MODEL_TYPES: dict[Task, ModelType] = {
    "chat": "text-generation",
    "embedding": "text-embeddings-inference",
    "rerank": "text-classification",
    "transcription": "automatic-speech-recognition",
}


class ProviderTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a provider when it is made, and kept.

    ``model_name`` is the pack's name or the model's at the upstream, ``timeout`` seconds,
    ``total_params`` and ``active_params`` billions, ``user_id`` None when the box itself owns it.
    """

    router_id: int
    user_id: int | None
    type: ProviderType
    url: str | None
    timeout: int
    model_name: str
    hosting_zone: str
    total_params: float
    active_params: float
    qos_metric: QosMetric | None
    qos_limit: float | None
    max_context_length: int | None
    vector_size: int | None


class Provider(ProviderTraits, frozen=True, kw_only=True):
    """One engine behind a router: a pack on this box, or an upstream server."""

    id: int
    sealed_key: bytes | None
    created_at: int
    updated_at: int | None

    @property
    def is_local(self) -> bool:
        """Whether an engine of this box does the work."""
        return self.type == "local"


class Router(msgspec.Struct, frozen=True, kw_only=True):
    """A model as clients name it. Prices are per million tokens; ``providers`` in the order of their ids."""

    id: int
    name: str
    aliases: tuple[str, ...]
    type: ModelType
    user_id: int | None
    # The name of its owner's organization.
    owner: str | None
    load_balancing_strategy: Strategy
    cost_prompt_tokens: float
    cost_completion_tokens: float
    providers: tuple[Provider, ...]
    created_at: int
    updated_at: int


class Limits(msgspec.Struct, frozen=True):
    """What a role may ask of one router; None is unlimited."""

    rpm: int | None
    rpd: int | None
    tpm: int | None
    tpd: int | None


UNLIMITED = Limits(None, None, None, None)
