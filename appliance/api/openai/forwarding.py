"""Requests that another engine answers: sent on as they came, streamed back as they come."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response

from appliance.api.openai.usage import Meter
from appliance.gateway.call import ModelCall
from appliance.gateway.errors import ProviderBusyError
from appliance.gateway.routing.records import Provider


async def forwarded_scores(
    request: Request[Any, Any, Any], call: ModelCall, provider: Provider, query: str, texts: list[str]
) -> list[float]:
    """Return the relevance of each text to the query, as logits, by a provider. Raises as ``forward`` does."""
    raise ProviderBusyError("Providers on other machines are not served yet.")


async def forward_transcription(
    request: Request[Any, Any, Any], call: ModelCall, provider: Provider, form: Any
) -> Response[Any]:
    """Answer with what a provider answers to an audio form. Raises as ``forward`` does."""
    raise ProviderBusyError("Providers on other machines are not served yet.")


async def forward(
    request: Request[Any, Any, Any], call: ModelCall, provider: Provider, meter: Meter, kind: str
) -> Response[Any]:
    """Answer with what a provider answers to the request's JSON body.

    Raises ProviderBusyError (503) before the first byte when it cannot take the request, UpstreamError.
    """
    raise ProviderBusyError("Providers on other machines are not served yet.")
