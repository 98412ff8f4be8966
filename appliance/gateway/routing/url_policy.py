"""Where a provider may be: which URLs are taken, and which addresses they may lead to."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import SplitResult, urlsplit

from appliance.errors import ApplianceError
from appliance.gateway.routing.records import ProviderType
from appliance.network.egress import EgressError, EgressPolicy

LONGEST_URL = 2048
RESOLVE_SECONDS = 10.0
PORTS = {"http": 80, "https": 443}

# Public services, only where the configuration lets calls out at all.
DEFAULT_URLS: dict[ProviderType, str] = {
    "albert": "https://albert.api.etalab.gouv.fr/",
    "openai": "https://api.openai.com/",
    "mistral": "https://api.mistral.ai/",
}

# Names, IPv4 addresses, and IPv6 addresses without zones.
_HOST = re.compile(r"[a-z0-9_][a-z0-9_.-]*|[0-9a-f:.]+")
_PATH = re.compile(r"[A-Za-z0-9._~/-]*")


class UrlRefusedError(ApplianceError):
    """A provider must not be there."""

    status = 422
    type = "invalid_request_error"


async def checked_url(text: str, policy: EgressPolicy) -> str:
    """Return a provider's URL as it is stored: in small letters up to its path, with a slash and no "/v1" at its end.

    Its host is looked up, and every address it has must be allowed; each connection is checked anew.
    Raises UrlRefusedError.
    """
    parts = _split(text.strip())
    host, port = _host_and_port(parts)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    if not _PATH.fullmatch(path) or "/.." in path or "/./" in path or "//" in path:
        raise UrlRefusedError("The path of the URL has characters that paths of servers do not have.")
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            await policy.resolve(host, port)
    except TimeoutError:
        raise UrlRefusedError(f"The host {host} cannot be looked up in time.") from None
    except EgressError as error:
        hint = "" if error.status == 503 else " The setting provider_networks lists where providers may be."
        raise UrlRefusedError(f"{error.message}{hint}") from error
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{'' if port == PORTS[parts.scheme] else f':{port}'}{path}/"


def _split(text: str) -> SplitResult:
    if len(text) > LONGEST_URL or not text.isascii() or not text.isprintable() or "\\" in text or " " in text:
        raise UrlRefusedError("The URL is too long, or has characters that URLs do not have.")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UrlRefusedError(f"The URL is not valid: {error}") from None
    if parts.scheme not in PORTS:
        raise UrlRefusedError("The URL must begin with http:// or https://.")
    if "@" in parts.netloc:
        raise UrlRefusedError("The URL must hold no user name or password: the key has a field of its own.")
    if "?" in text or "#" in text:
        raise UrlRefusedError("The URL must end with its path: no query, no fragment.")
    return parts


def _host_and_port(parts: SplitResult) -> tuple[str, int]:
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UrlRefusedError(f"The URL is not valid: {error}") from None
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise UrlRefusedError("The URL names no host.")
    if port == 0 or parts.netloc.endswith(":"):
        raise UrlRefusedError("The URL names no port that exists.")
    return host, PORTS[parts.scheme] if port is None else port
