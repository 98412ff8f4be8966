"""Fetch a file from a server of the LAN, by way of the egress policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx

from appliance.network.egress import EgressError, EgressPolicy, egress_client

MAX_BYTES = 64 << 30


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

    Raises EgressError when the policy forbids it, the server does not answer 200, or sends less or
    more than it said; DownloadCancelledError. ``target`` may then hold a part.
    """
    try:
        asyncio.run(_download(policy, url, target, progress, cancelled))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EgressError(f"{url} cannot be fetched: {error or type(error).__name__}", status=503) from error


async def _download(
    policy: EgressPolicy,
    url: str,
    target: Path,
    progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> None:
    async with egress_client(policy) as client, client.stream("GET", url) as response:
        if response.status_code != httpx.codes.OK:
            raise EgressError(
                f"{url} answers {response.status_code}; redirects are not followed.", status=503
            )
        total = int(response.headers.get("content-length", 0))
        done = 0
        with target.open("wb") as file:
            async for piece in response.aiter_bytes(1 << 20):
                done += len(piece)
                if cancelled():
                    raise DownloadCancelledError("the download was cancelled")
                if done > MAX_BYTES:
                    raise EgressError(f"{url} sends more than {MAX_BYTES} bytes")
                file.write(piece)
                progress(done, total)
