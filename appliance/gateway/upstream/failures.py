"""What goes wrong at an upstream server, in the words and statuses of OpenGateLLM's contract (section 5.5).

What another provider may do better is UpstreamUnavailableError or ProviderBusyError (503: the next one is
tried); what is wrong with the request itself is UpstreamError, with the upstream's status.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from appliance.errors import ApplianceError
from appliance.gateway.errors import ProviderBusyError, UpstreamError, UpstreamUnavailableError
from appliance.network.egress import EgressError

log = logging.getLogger(__name__)

RETRY_SECONDS = 10
LONGEST_RETRY_SECONDS = 3600
LONGEST_WORD = 64
# What a server sends when the fault is in how this box calls it (its address, key, account or model), not in
# what the client asked: the client can do nothing about it, and must not take it for a refusal of its own key.
MISCONFIGURED = frozenset({401, 402, 403, 404, 405, 406, 407, 421, 426})
# Too early, or too slow for it.
PASSING = frozenset({408, 425})

# What the contract's clients know broken calls by: its reference calls upstream servers with httpx.
_NAMES: dict[type[Exception], str] = {
    aiohttp.ConnectionTimeoutError: "ConnectTimeout",
    TimeoutError: "ReadTimeout",
    aiohttp.ClientOSError: "ReadError",
    aiohttp.ClientPayloadError: "RemoteProtocolError",
    aiohttp.ServerDisconnectedError: "RemoteProtocolError",
    aiohttp.ClientResponseError: "RemoteProtocolError",
}

UNAVAILABLE = "Model is temporarily unavailable, please try again later."


def unavailable(provider: str, reason: str) -> UpstreamUnavailableError:
    """Return the error for a provider that gave no usable answer; the reason goes to the log."""
    log.warning("%s: %s", provider, reason)
    return UpstreamUnavailableError(UNAVAILABLE, retry_after=RETRY_SECONDS)


def not_now(provider: str, reason: str) -> ProviderBusyError:
    """Return the error for what a request brings about, not the provider: others are not to be turned away from it."""
    log.warning("%s: %s", provider, reason)
    return ProviderBusyError(UNAVAILABLE, retry_after=RETRY_SECONDS)


def from_exception(provider: str, error: Exception) -> UpstreamUnavailableError:
    """Return the error for a call that broke."""
    if isinstance(error, EgressError | aiohttp.ClientConnectorError | aiohttp.InvalidURL):
        return unavailable(provider, str(error) or type(error).__name__)
    name = next((name for kind, name in _NAMES.items() if isinstance(error, kind)), type(error).__name__)
    log.warning("%s: %s: %s", provider, name, error)
    return UpstreamUnavailableError(
        f"Model is too busy ({name}), please try again later", retry_after=RETRY_SECONDS
    )


def from_status(provider: str, status: int, retry_after_header: str, body: bytes) -> ApplianceError:
    """Return the error for an answer that is no success. Redirects are failures: they are not followed."""
    retry_after = _retry_after(retry_after_header)
    if status == HTTPStatus.TOO_MANY_REQUESTS or (
        status == HTTPStatus.SERVICE_UNAVAILABLE and retry_after is not None
    ):
        log.info("%s: is too busy (%d)", provider, status)
        return ProviderBusyError(
            "Model is too busy, please try again later.", retry_after=retry_after or RETRY_SECONDS
        )
    if not 400 <= status < 500 or status in MISCONFIGURED or status in PASSING:
        return unavailable(provider, f"answers {status}: {_shown(body)}")
    return refusal(status, body)


def refusal(status: int, body: bytes) -> UpstreamError:
    """Return the error for a request that the upstream finds wrong, in its words."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UpstreamError(body.decode("utf-8", "replace") or "Bad request.", status=status)
    error = answer.get("error") if isinstance(answer, dict) else None
    said = error if isinstance(error, dict) else answer if isinstance(answer, dict) else {}
    message = next(
        (text for text in (said.get("message"), said.get("detail"), error) if isinstance(text, str) and text),
        None,
    )
    return UpstreamError(
        message or body.decode("utf-8", "replace"),
        status=status,
        type=_word(said.get("type")),
        code=_word(said.get("code")),
        param=_word(said.get("param")),
    )


def error_event(provider: str, event: bytes) -> ApplianceError:
    """Return the error that an upstream put into a stream, as JSON."""
    try:
        payload = msgspec.json.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        payload = None
    error = payload.get("error") if isinstance(payload, dict) else None
    status = error.get("code") if isinstance(error, dict) else None
    if type(status) is int and 400 <= status < 500:
        return from_status(provider, status, "", event)
    return unavailable(provider, f"sends an error: {_shown(event)}")


def _retry_after(text: str) -> int | None:
    """Return the seconds of ``Retry-After``; a date or nonsense counts as absent."""
    text = text.strip()
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(LONGEST_RETRY_SECONDS)):
        return None
    return max(1, min(int(text), LONGEST_RETRY_SECONDS))


def _word(value: Any) -> str | None:
    """Return a machine-readable word of the upstream's, None when it is none."""
    return (
        value if isinstance(value, str) and 0 < len(value) <= LONGEST_WORD and value.isprintable() else None
    )


def _shown(body: bytes) -> str:
    return repr(body[:300].decode("utf-8", "replace"))
