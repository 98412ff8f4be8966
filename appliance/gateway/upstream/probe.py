"""Asking an upstream server, before it becomes a provider, whether it has the model and how large that is."""

from __future__ import annotations

import logging
from typing import Any

import aiohttp
import msgspec

from appliance.errors import ApplianceError
from appliance.gateway.errors import ProbeFailedError
from appliance.gateway.routing.records import ProviderType
from appliance.gateway.upstream.client import Upstream, base_url, fetch, fetch_fields, seconds

log = logging.getLogger(__name__)

MODELS_PATH = "/v1/models"
INFO_PATH = "/info"
EMBEDDINGS_PATH = "/v1/embeddings"
# No model is wider, no context longer.
LARGEST = 1 << 31

_CONTEXT_FIELDS = ("max_context_length", "max_model_len")


class Probed(msgspec.Struct, frozen=True):
    """What an upstream says of a model; None where it does not say."""

    max_context_length: int | None
    vector_size: int | None


class _Card(msgspec.Struct):
    id: str
    aliases: list[str] | None = None
    max_context_length: Any = None
    max_model_len: Any = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Info(msgspec.Struct):
    model_id: str
    max_input_length: Any = None


class _Embedded(msgspec.Struct):
    embedding: list[float]


def listing_path(provider_type: ProviderType) -> str:
    """Return the path that tells cheaply whether a server is there, and what it serves."""
    return INFO_PATH if provider_type == "tei" else MODELS_PATH


async def probe(
    client: aiohttp.ClientSession,
    provider_type: ProviderType,
    url: str,
    key: str | None,
    model_name: str,
    want_vector_size: bool,
    timeout: float,
) -> Probed:
    """Look for a model at an upstream; with ``want_vector_size`` embed a word there. ``timeout`` is per call.

    Raises ProbeFailedError (424); the reason goes to the log.
    """
    upstream = Upstream(
        name=f"probe of {provider_type} {url}",
        type=provider_type,
        url=base_url(url),
        key=key,
        timeout=seconds(timeout),
        model_name=model_name,
    )
    try:
        context = await _context_length(client, upstream)
        size = await _vector_size(client, upstream) if want_vector_size else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, ApplianceError) as error:
        log.warning("%s: %s", upstream.name, error)
        raise ProbeFailedError(model_name) from error
    return Probed(context, size)


async def _context_length(client: aiohttp.ClientSession, upstream: Upstream) -> int | None:
    body = await fetch(client, upstream, listing_path(upstream.type), method="GET")
    if upstream.type == "tei":
        info = msgspec.json.decode(body, type=_Info)
        if info.model_id != upstream.model_name:
            raise LookupError(f"serves {info.model_id!r}")
        return _size(info.max_input_length)
    for card in msgspec.json.decode(body, type=_Cards).data:
        if upstream.model_name == card.id or upstream.model_name in (card.aliases or ()):
            sizes = [_size(getattr(card, name)) for name in _CONTEXT_FIELDS]
            return next((size for size in sizes if size is not None), None)
    raise LookupError("does not list the model")


async def _vector_size(client: aiohttp.ClientSession, upstream: Upstream) -> int:
    body = {"model": upstream.model_name, "input": "hello", "encoding_format": "float"}
    answer = await fetch_fields(client, upstream, EMBEDDINGS_PATH, body)
    vectors = msgspec.json.decode(answer["data"], type=list[_Embedded])
    size = len(vectors[0].embedding)
    if not size:
        raise LookupError("answers with an empty vector")
    return size


def _size(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < LARGEST else None
