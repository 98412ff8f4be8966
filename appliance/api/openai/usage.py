"""The token counts in an answer, and what the request cost and burned where the mount shows it."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.api.dialect import Dialect
from appliance.gateway.call import CallUsage, ModelCall


class Range(msgspec.Struct, frozen=True):
    """From the least to the most likely."""

    min: float
    max: float


class Carbon(msgspec.Struct, frozen=True, kw_only=True):
    """What a request burned; ``measured`` only where the energy was measured on this box."""

    kWh: Range  # noqa: N815 - OpenGateLLM's name
    kgCO2eq: Range  # noqa: N815
    measured: bool | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of the prompt(s) and of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    cost: float | msgspec.UnsetType = msgspec.UNSET
    carbon: Carbon | msgspec.UnsetType = msgspec.UNSET
    requests: int | msgspec.UnsetType = msgspec.UNSET


class PromptUsage(msgspec.Struct, kw_only=True):
    """Tokens of a request that produces none."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | msgspec.UnsetType = msgspec.UNSET
    cost: float | msgspec.UnsetType = msgspec.UNSET
    carbon: Carbon | msgspec.UnsetType = msgspec.UNSET
    requests: int | msgspec.UnsetType = msgspec.UNSET


class Meter:
    """Counts what one answer holds for the call that it belongs to, and shows it as its mount does."""

    def __init__(self, call: ModelCall, dialect: Dialect) -> None:
        self._call = call
        self._full = dialect.full_usage
        # OpenGateLLM's clients know neither details of tokens nor whether energy was measured.
        self._plain = not dialect.vllm_fields

    def count(self, completion_tokens: int) -> None:
        """Count tokens that are about to be sent."""
        self._call.completion_tokens += completion_tokens

    def first_token(self) -> None:
        """Note that a stream's first token is about to be sent."""
        self._call.first_token()

    def usage(self) -> Usage:
        """Return the usage so far."""
        used = self._call.usage()
        shown = Usage(
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            total_tokens=used.prompt_tokens + used.completion_tokens,
        )
        if self._full:
            shown.cost, shown.carbon, shown.requests = used.cost, self._carbon(used), used.requests
        if self._plain:
            shown.prompt_tokens_details = shown.completion_tokens_details = msgspec.UNSET
        return shown

    def prompt_usage(self) -> PromptUsage:
        """Return the usage of a request without completion."""
        used = self._call.usage()
        shown = PromptUsage(prompt_tokens=used.prompt_tokens, total_tokens=used.prompt_tokens)
        if self._full:
            shown.completion_tokens = 0
            shown.cost, shown.carbon, shown.requests = used.cost, self._carbon(used), used.requests
        return shown

    def _carbon(self, used: CallUsage) -> Carbon:
        burned = carbon(used)
        return Carbon(kWh=burned.kWh, kgCO2eq=burned.kgCO2eq) if self._plain else burned


def carbon(used: CallUsage) -> Carbon:
    """Return the footprint of a call as answers show it."""
    burned = used.footprint
    return Carbon(
        kWh=Range(burned.kwh_min, burned.kwh_max),
        kgCO2eq=Range(burned.kgco2eq_min, burned.kgco2eq_max),
        measured=True if burned.measured else msgspec.UNSET,
    )
