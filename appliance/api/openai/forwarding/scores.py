"""Reranking by upstream servers, for the handlers that rank by an engine of this box."""

from __future__ import annotations

from typing import Any

from litestar import Request

from appliance.api.disconnect import until_disconnect
from appliance.api.openai.forwarding.counts import token_count
from appliance.api.openai.forwarding.target import client_of, headers_for, upstream_of
from appliance.gateway.call import ModelCall
from appliance.gateway.routing.records import Provider
from appliance.gateway.upstream.families import path
from appliance.gateway.upstream.scores import scores


async def forwarded_scores(
    request: Request[Any, Any, Any], call: ModelCall, provider: Provider, query: str, texts: list[str]
) -> list[float]:
    """Return the relevance of each text to the query, as logits, by a provider. Raises as ``forwarding.forward``."""
    upstream = upstream_of(request, provider)
    path(upstream, "rerank")  # before anything is counted
    # The query is read once with each text.
    read = await token_count(request, texts) + len(texts) * await token_count(request, [query])
    call.reserve(read, guess="texts")
    headers = headers_for(request, upstream)
    scored = await until_disconnect(request, scores(client_of(request), upstream, query, texts, headers))
    if scored.prompt_tokens:
        call.count_prompt(scored.prompt_tokens)
    return scored.logits
