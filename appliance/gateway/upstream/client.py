"""Calls to upstream servers: bounded in time and size, their failures turned into errors of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from appliance.gateway.routing.records import Provider, ProviderType
from appliance.gateway.upstream.failures import from_exception, from_status, not_now, unavailable
from appliance.network.egress import CONNECT_SECONDS, EgressError, Reuse

MAX_ANSWER_BYTES = 64 << 20
MAX_ERROR_BYTES = 64 << 10
LONGEST_SECONDS = 86_400
# Larger answers are decoded in a thread.
INLINE_BYTES = 1 << 20

# Within this time, a connection that was kept shows that the server has closed it; what breaks later broke at work.
STALE_SECONDS = 1.0

# Shorter keys are no secrets, and parts of other words.
LEAST_KEY_CHARACTERS = 8

# What may go wrong on the wire; a programming error is none of them.
BROKEN = (aiohttp.ClientError, EgressError, TimeoutError)

# Read from its beginning each time that it is sent.
Content = bytes | AsyncIterable[bytes]
Fields = dict[str, msgspec.Raw]


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """How one upstream server is called. ``key`` is clear text; ``timeout`` seconds."""

    name: str
    type: ProviderType
    url: str
    key: str | None
    timeout: float
    model_name: str

    @classmethod
    def of(cls, provider: Provider, key: str | None) -> Upstream:
        """Return how a provider is called; its timeout brought into bounds."""
        return cls(
            name=f"provider {provider.id} ({provider.type} {provider.url})",
            type=provider.type,
            url=base_url(provider.url or ""),
            key=key,
            timeout=seconds(provider.timeout),
            model_name=provider.model_name,
        )

    def without_key(self, said: bytes) -> bytes:
        """Return what the server says of a failure with its key left out: some repeat the headers they were sent."""
        if self.key is None or len(self.key) < LEAST_KEY_CHARACTERS:
            return said
        return said.replace(self.key.encode(), b"***")

    async def send(
        self,
        client: aiohttp.ClientSession,
        method: str,
        path: str,
        content: Content,
        headers: dict[str, str],
    ) -> aiohttp.ClientResponse:
        """Send a request and return its answer, unread. Raises what is in ``BROKEN``.

        A connection that was kept may be closed by the server while the request is on its way: then it has not
        been read, and goes over another one.
        """
        if self.key:
            if not self.key.isprintable():
                raise EgressError("its key has characters that no header can hold")
            headers = {**headers, "Authorization": f"Bearer {self.key}"}
        ends = asyncio.get_running_loop().time() + STALE_SECONDS
        while True:
            reuse = Reuse()
            try:
                return await client.request(
                    method,
                    self.url + path,
                    data=content or None,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=min(CONNECT_SECONDS, self.timeout), sock_read=self.timeout
                    ),
                    trace_request_ctx=reuse,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not reuse.happened or asyncio.get_running_loop().time() > ends:
                    raise


def base_url(url: str) -> str:
    """Return a server's URL without a slash or "/v1" at its end, to which paths are added."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def seconds(timeout: float) -> float:
    """Return a time-out that can be kept: from a second to a day."""
    return float(max(1, min(timeout, LONGEST_SECONDS)))


async def begin(
    client: aiohttp.ClientSession,
    upstream: Upstream,
    path: str,
    content: Content,
    headers: dict[str, str],
    *,
    method: str = "POST",
) -> aiohttp.ClientResponse:
    """Send a request and return its answer, which is a success and unread; the caller closes it.

    Raises UpstreamUnavailableError, ProviderBusyError (both 503), UpstreamError. There is no bound on the time
    in all: set one around it.
    """
    try:
        response = await upstream.send(client, method, path, content, headers)
    except BROKEN as error:
        raise from_exception(upstream.name, error) from error
    try:
        await _check(upstream, response)
    except BaseException:
        response.close()
        raise
    return response


async def read(
    upstream: Upstream, response: aiohttp.ClientResponse, limit: int, *, cut: bool = False
) -> bytes:
    """Return an answer's body of at most ``limit`` bytes; with ``cut`` the beginning of a longer one.

    Raises UpstreamUnavailableError when it breaks off, ProviderBusyError when it is longer.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                if not cut:
                    raise not_now(upstream.name, f"answers more than {limit} bytes")
                break
    except BROKEN as error:
        raise from_exception(upstream.name, error) from error
    return b"".join(pieces)[:limit]


async def _check(upstream: Upstream, response: aiohttp.ClientResponse) -> None:
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise unavailable(upstream.name, "answers compressed though that was not asked for")
    if response.status != HTTPStatus.OK:
        body = upstream.without_key(await read(upstream, response, MAX_ERROR_BYTES, cut=True))
        raise from_status(upstream.name, response.status, response.headers.get("Retry-After", ""), body)


async def fetch(
    client: aiohttp.ClientSession,
    upstream: Upstream,
    path: str,
    content: Content = b"",
    headers: dict[str, str] | None = None,
    *,
    method: str = "POST",
) -> bytes:
    """Return the body of a call, which may take the upstream's ``timeout`` in all. Raises as ``begin``."""
    try:
        async with asyncio.timeout(upstream.timeout):
            response = await begin(client, upstream, path, content, headers or {}, method=method)
            try:
                return await read(upstream, response, MAX_ANSWER_BYTES)
            finally:
                response.close()
    except TimeoutError as error:
        raise from_exception(upstream.name, error) from error


async def fetch_fields(
    client: aiohttp.ClientSession,
    upstream: Upstream,
    path: str,
    body: Any,
    headers: dict[str, str] | None = None,
) -> Fields:
    """Post JSON and return the fields of the JSON object that it answers with, each as it was written.

    Raises as ``begin``; UpstreamUnavailableError also when it is no such object.
    """
    sent = {**(headers or {}), "Content-Type": "application/json"}
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await fields_of(upstream, await fetch(client, upstream, path, content, sent))


async def fields_of(upstream: Upstream, body: bytes) -> Fields:
    """Return the fields of a JSON object. Raises UpstreamUnavailableError when it is none."""
    if len(body) <= INLINE_BYTES:
        return _fields(upstream, body)
    return await asyncio.to_thread(_fields, upstream, body)


def _fields(upstream: Upstream, body: bytes) -> Fields:
    try:
        body.decode("utf-8")  # the values are passed on unread
        return msgspec.json.decode(body, type=Fields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unavailable(upstream.name, f"answers what is no JSON object: {error}") from error
