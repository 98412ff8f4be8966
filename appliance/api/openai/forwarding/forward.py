"""Requests that another server answers: sent on as they came, streamed back as they come."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from litestar import Request, Response

from appliance.api.body import decoded
from appliance.api.disconnect import at_end, until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.event_stream import event_stream
from appliance.api.openai.forwarding.answer import Relay, account, generation_answer, own_id
from appliance.api.openai.forwarding.body import (
    EMBEDDING_DEFAULTS,
    MOST_CHOICES,
    Asked,
    generation_fields,
    received_fields,
    reserve,
    with_defaults,
)
from appliance.api.openai.forwarding.counts import flat_texts, message_texts, token_count
from appliance.api.openai.forwarding.target import client_of, headers_for, upstream_of
from appliance.api.openai.generation.fields import StreamOptions
from appliance.api.openai.usage import Meter
from appliance.errors import ApplianceError
from appliance.gateway.call import ModelCall
from appliance.gateway.routing.records import Provider
from appliance.gateway.upstream.client import Upstream, fetch_fields
from appliance.gateway.upstream.counts import counts_of
from appliance.gateway.upstream.events import open_stream
from appliance.gateway.upstream.failures import unavailable
from appliance.gateway.upstream.families import Kind, adapted, path, raw

encode = msgspec.json.encode


async def answered(
    request: Request[Any, Any, Any],
    call: ModelCall,
    meter: Meter,
    kind: Kind,
    local: Callable[[Provider], Awaitable[Response[Any]]],
) -> Response[Any]:
    """Answer a request by one of its model's providers: ``local`` by an engine of this box, or by sending it on.

    Raises what ``ModelCall.dispatch`` raises.
    """

    async def answer(provider: Provider) -> Response[Any]:
        if provider.is_local:
            return await local(provider)
        return await forward(request, call, provider, meter, kind)

    return await call.dispatch(answer)


async def forward(
    request: Request[Any, Any, Any], call: ModelCall, provider: Provider, meter: Meter, kind: Kind
) -> Response[Any]:
    """Answer with what a provider answers to the request's JSON body: "chat", "completions", "embeddings".

    Before the first byte raises UpstreamUnavailableError or ProviderBusyError (503) when it cannot take the
    request, UpstreamError when it finds it wrong, LimitExceededError, InsufficientBudgetError.
    """
    upstream = upstream_of(request, provider)
    where = path(upstream, kind)
    if kind == "embeddings":
        return await _embeddings(request, call, upstream, meter, where)
    return await _generation(request, call, provider, upstream, meter, kind, where)


async def _generation(
    request: Request[Any, Any, Any],
    call: ModelCall,
    provider: Provider,
    upstream: Upstream,
    meter: Meter,
    kind: Kind,
    where: str,
) -> Response[Any]:
    dialect = dialect_of(request)
    fields = await received_fields(request)
    asked = await decoded(await request.body(), Asked)
    texts, ids = flat_texts(asked.prompt)
    if kind == "chat":
        texts, ids = list(message_texts(asked.messages, asked.tools)), 0
    sent = generation_fields(fields, asked, kind, dialect, upstream)
    reserve(sent, asked, kind, call, provider, ids + await token_count(request, texts))
    headers = {**headers_for(request, upstream), "Content-Type": "application/json"}
    if not asked.stream:
        answer = await until_disconnect(
            request, fetch_fields(client_of(request), upstream, where, encode(sent), headers)
        )
        body = await generation_answer(request, call, upstream, meter, answer, asked.model)
        return Response(body, media_type="application/json")
    stream = await until_disconnect(
        request, open_stream(client_of(request), upstream, where, encode(sent), headers)
    )
    at_end(request, stream.abandon)
    options = asked.stream_options or StreamOptions()
    relay = Relay(
        request,
        call,
        upstream,
        stream,
        meter,
        # OpenGateLLM's streams name the model as the provider does.
        model=provider.model_name if dialect.gateway_streams else asked.model,
        most_choices=max(asked.sequences, MOST_CHOICES),
        with_usage=options.usage or dialect.gateway_streams,
        running_usage=options.running_usage,
    )
    try:
        await relay.start()
    except ApplianceError:
        stream.abandon()  # it is not to work on while another server answers
        raise
    return event_stream(relay.events(), dialect, on_failure=call.broken)


class _EmbeddingAsked(msgspec.Struct):
    model: str
    input: Any = None
    encoding_format: str | None = None


async def _embeddings(
    request: Request[Any, Any, Any], call: ModelCall, upstream: Upstream, meter: Meter, where: str
) -> Response[Any]:
    fields = await received_fields(request)
    asked = await decoded(await request.body(), _EmbeddingAsked)
    texts, ids = flat_texts(asked.input)
    call.reserve(ids + await token_count(request, texts), guess="texts")
    if dialect_of(request).forward_defaults:
        fields = with_defaults(fields, EMBEDDING_DEFAULTS)
    as_base64 = upstream.type == "albert" and asked.encoding_format == "base64"
    if as_base64:
        fields["encoding_format"] = raw("float")  # it knows no other
    answer = await until_disconnect(
        request,
        fetch_fields(
            client_of(request),
            upstream,
            where,
            encode(adapted(upstream, "embeddings", fields)),
            headers_for(request, upstream),
        ),
    )
    data = answer.get("data")
    if data is None or bytes(memoryview(data)[:1]) != b"[":
        raise unavailable(upstream.name, "answers without vectors")
    if as_base64:
        answer["data"] = await asyncio.to_thread(_in_base64, upstream, data)
    account(call, counts_of(answer), 0)
    call.completion_tokens = 0
    answer |= {"id": own_id(answer), "model": raw(asked.model), "usage": raw(meter.prompt_usage())}
    return Response(encode(answer), media_type="application/json")


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float]


def _in_base64(upstream: Upstream, data: msgspec.Raw) -> msgspec.Raw:
    """Return vectors as OpenAI's clients ask for them: 32-bit floats in base64."""
    try:
        vectors = msgspec.json.decode(data, type=list[_Vector])
        return raw(
            [
                {
                    "object": "embedding",
                    "index": vector.index,
                    "embedding": base64.b64encode(
                        struct.pack(f"<{len(vector.embedding)}f", *vector.embedding)
                    ).decode(),
                }
                for vector in vectors
            ]
        )
    except (msgspec.DecodeError, OverflowError) as error:
        raise unavailable(upstream.name, f"answers what are no vectors: {error}") from error
