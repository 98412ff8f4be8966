"""Fetch single files of a Hugging Face style hub over HTTP.

The hub's address comes from ``HF_ENDPOINT`` and nowhere else, so that a mirror is a setting and a
build never reaches out by itself. ``HF_TOKEN`` is sent when set, to that host only.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from model_packs.errors import SourceError
from model_packs.fetch import CHUNK, store
from model_packs.recipe import HubSource, PinnedFile

ENDPOINT_ENV = "HF_ENDPOINT"
TOKEN_ENV = "HF_TOKEN"  # noqa: S105 - the name of a variable
MAX_REDIRECTS = 5


def hub_file(source: HubSource, pinned: PinnedFile, sources: Path) -> Path:
    """Download one file into ``sources``; its hash must be the pinned one. Raises SourceError.

    The route is ``{endpoint}/{repository}/resolve/{revision}/{path}``, which answers with the file
    or redirects to where it is kept.
    """
    endpoint = os.environ.get(ENDPOINT_ENV, "").rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise SourceError(f"{source.hub} comes from a model hub: set {ENDPOINT_ENV} to the hub's address")
    address = f"{endpoint}/{source.hub}/resolve/{quote(source.revision)}/{quote(pinned.path)}"
    filename = Path(pinned.path).name
    target = sources / pinned.sha256 / filename
    label = f"{source.hub} {pinned.path}"
    # httpx drops the Authorization header by itself when a redirect leaves the host.
    headers = {"Accept-Encoding": "identity"}
    if token := os.environ.get(TOKEN_ENV):
        headers["Authorization"] = f"Bearer {token}"
    try:
        with (
            httpx.Client(follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=60) as client,
            client.stream("GET", address, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise SourceError(
                    f"{address} answered {response.status_code}: check the repository and revision"
                )
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            return store(response.iter_bytes(CHUNK), pinned.sha256, target, label, total)
    except httpx.HTTPError as error:
        raise SourceError(f"cannot fetch {address}: {error or type(error).__name__}") from error
