"""Reranking by upstream servers: each family's body, and the scores in its answer as logits."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import aiohttp
import msgspec

from appliance.gateway.upstream.client import Fields, Upstream, fetch, fetch_fields
from appliance.gateway.upstream.counts import counts_of
from appliance.gateway.upstream.failures import from_exception, unavailable
from appliance.gateway.upstream.families import path

# What TEI takes at once unless it was started otherwise. Each text is scored for itself: cutting changes nothing.
TEI_BATCH = 32
# Probabilities of 0 and 1 have no logit; these are about as near as 32-bit floats come.
NEAREST = 1e-7


class Scored(msgspec.Struct, frozen=True):
    """A logit per text, in the order of the texts, and the tokens read, if the upstream says how many."""

    logits: list[float]
    prompt_tokens: int | None


class _Score(msgspec.Struct):
    index: int
    score: float


class _Relevance(msgspec.Struct):
    index: int
    relevance_score: float


async def scores(
    client: aiohttp.ClientSession, upstream: Upstream, query: str, texts: list[str], headers: dict[str, str]
) -> Scored:
    """Score each text against a query, within the upstream's ``timeout``. Raises as ``client.begin``."""
    try:
        async with asyncio.timeout(upstream.timeout):
            return await _scores(client, upstream, query, texts, headers)
    except TimeoutError as error:
        raise from_exception(upstream.name, error) from error


async def _scores(
    client: aiohttp.ClientSession, upstream: Upstream, query: str, texts: list[str], headers: dict[str, str]
) -> Scored:
    if upstream.type == "tei":
        return await _by_tei(client, upstream, query, texts, headers)
    body: dict[str, Any] = {"model": upstream.model_name, "query": query, "documents": texts}
    if upstream.type == "appliance":
        body["raw_scores"] = True
    answer = await fetch_fields(client, upstream, path(upstream, "rerank"), body, headers)
    found = _decoded(upstream, answer.get("results"), list[_Relevance])
    values = _in_order(upstream, [(each.index, each.relevance_score) for each in found], len(texts))
    logits = values if upstream.type == "appliance" else as_logits(values)
    return Scored(logits, _tokens_read(answer))


async def _by_tei(
    client: aiohttp.ClientSession, upstream: Upstream, query: str, texts: list[str], headers: dict[str, str]
) -> Scored:
    values: list[float] = []
    sent = {**headers, "Content-Type": "application/json"}
    for start in range(0, len(texts), TEI_BATCH):
        batch = texts[start : start + TEI_BATCH]
        body = msgspec.json.encode({"query": query, "texts": batch})
        answer = await fetch(client, upstream, path(upstream, "rerank"), body, sent)
        found = _decoded(upstream, msgspec.Raw(answer), list[_Score])
        values += _in_order(upstream, [(each.index, each.score) for each in found], len(batch))
    return Scored(as_logits(values), None)


def as_logits(values: list[float]) -> list[float]:
    """Return logits: of probabilities their logits, of anything else the values themselves."""
    if not all(0 <= value <= 1 for value in values):
        return values
    clamped = [min(max(value, NEAREST), 1 - NEAREST) for value in values]
    return [math.log(value / (1 - value)) for value in clamped]


def _decoded(upstream: Upstream, value: msgspec.Raw | None, type_: Any) -> Any:
    try:
        return msgspec.json.decode(value or b"", type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unavailable(upstream.name, f"answers what is no ranking: {error}") from error


def _in_order(upstream: Upstream, found: list[tuple[int, float]], count: int) -> list[float]:
    """Return the values by their places. Raises UpstreamUnavailableError unless each has exactly one."""
    values = dict(found)
    if (
        len(found) != count
        or values.keys() != set(range(count))
        or not all(map(math.isfinite, values.values()))
    ):
        raise unavailable(upstream.name, f"answers {len(found)} scores for {count} texts, or twice for one")
    return [values[place] for place in range(count)]


def _tokens_read(answer: Fields) -> int | None:
    said = counts_of(answer)
    return said.prompt_tokens or said.total_tokens or None  # some say the total alone
