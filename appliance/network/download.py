"""Fetch a file from a server of the LAN, by way of the egress policy."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from appliance.network.egress import EgressError, EgressPolicy, egress_client

MAX_BYTES = 64 << 30
# Left free on the disk, for the stores of the running service.
RESERVED_BYTES = 256 << 20
CANCEL_CHECK_SECONDS = 0.5
NO_SPACE = 507


class DownloadCancelledError(EgressError):
    """The caller asked to stop."""


def download(
    policy: EgressPolicy,
    url: str,
    target: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    """Write what ``url`` answers to ``target``; for threads. ``progress`` gets (bytes done, bytes in all or 0).

    Raises EgressError when the policy forbids it, the server does not answer 200, compresses, or sends
    less or more than it said, and when the disk is full; DownloadCancelledError, soon also while the
    server is silent. ``target`` may then hold a part.
    """
    try:
        asyncio.run(_until_cancelled(_fetch(policy, url, target, progress, cancelled), cancelled))
    except (aiohttp.ClientError, TimeoutError) as error:
        text = f"{shown_url(url)} cannot be fetched: {_told(error) or type(error).__name__}"
        raise EgressError(text, status=503) from error


def shown_url(source: str) -> str:
    """Return where something comes from without what a URL may hold beside: a password, a token in the query."""
    if "://" not in source:
        return source
    rest = source.partition("://")[2].partition("?")[0].partition("#")[0]
    host, slash, path = rest.partition("/")
    return f"{source.partition('://')[0]}://{host.rpartition('@')[2]}{slash}{path}"


def _told(error: Exception) -> str:
    """Return what an error says, but for the URL, which some repeat."""
    if isinstance(error, aiohttp.ClientResponseError):  # the answer is no HTTP
        return repr(error.message)
    return "" if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError) else str(error)


async def _until_cancelled(work: Coroutine[Any, Any, None], cancelled: Callable[[], bool]) -> None:
    fetch = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({fetch}, timeout=CANCEL_CHECK_SECONDS))[0]:
            _check(cancelled)
        fetch.result()
    finally:
        if not fetch.done():
            fetch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await fetch


async def _fetch(
    policy: EgressPolicy,
    url: str,
    target: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    shown = shown_url(url)
    async with egress_client(policy) as client, client.get(url, allow_redirects=False) as response:
        if response.status != HTTPStatus.OK:
            raise EgressError(f"{shown} answers {response.status}; redirects are not followed.", status=503)
        # The bytes are taken as they come: a small compressed answer could unpack to any size.
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise EgressError(
                f"{shown} answers with a compressed file though none was asked for.", status=503
            )
        total = response.content_length or 0
        _require_space(target, total)
        done = 0
        with target.open("wb") as file:
            async for piece in response.content.iter_chunked(1 << 20):
                done += len(piece)
                _check(cancelled)
                if done > MAX_BYTES:
                    raise EgressError(f"{shown} sends more than {MAX_BYTES} bytes")
                _require_space(target, len(piece))
                file.write(piece)
                progress(done, total)


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise DownloadCancelledError("the download was cancelled")


def _require_space(target: Path, count: int) -> None:
    if shutil.disk_usage(target.parent).free < count + RESERVED_BYTES:
        raise EgressError("The disk is too full for this download.", status=NO_SPACE, type="server_error")
