"""What of a client's JSON body goes to an upstream server, and what we must know of it."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request

from appliance.api.body import decoded
from appliance.api.dialect import Dialect
from appliance.api.openai.forwarding.counts import only_texts
from appliance.api.openai.generation.fields import StreamOptions
from appliance.gateway.call import ModelCall
from appliance.gateway.routing.prompt_estimates import Guess
from appliance.gateway.routing.records import Provider
from appliance.gateway.upstream.client import Fields, Upstream
from appliance.gateway.upstream.counts import MOST_TOKENS
from appliance.gateway.upstream.families import COUNTING_STREAMS, NULL, Kind, adapted, is_null, raw

# What text completions get when they name no length, as everywhere.
COMPLETION_TOKENS = 16
# What is reserved for an answer of no stated length by a model of unknown context.
UNKNOWN_CONTEXT = 8192
MOST_CHOICES = 1024

# The declared fields of OpenGateLLM's bodies with their defaults (its contract, sections 9.1 and 10.1).
CHAT_DEFAULTS: dict[str, Any] = {
    "frequency_penalty": 0.0,
    "logit_bias": None,
    "logprobs": False,
    "top_logprobs": None,
    "presence_penalty": 0.0,
    "max_completion_tokens": None,
    "n": 1,
    "response_format": None,
    "seed": None,
    "stop": [],
    "stream": False,
    "stream_options": None,
    "temperature": 0.7,
    "top_p": 1,
    "tools": None,
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "user": None,
}
EMBEDDING_DEFAULTS: dict[str, Any] = {"dimensions": None, "encoding_format": "float"}
# Declared fields that are for the gateway itself.
GATEWAY_FIELDS = ("search", "search_args")
# By which a client reaches what a server holds of its other requests, which here are other users': keys and values
# (vLLM's), the slot with its prompt (llama.cpp's).
REACHING_FIELDS = ("kv_transfer_params", "id_slot")


class Asked(msgspec.Struct, kw_only=True):
    """What we look at of a generation's body; the handler has checked it already."""

    model: str
    messages: Any = None
    prompt: Any = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def sequences(self) -> int:
        """How many completions are produced; the best n of ``best_of`` are shown, all are paid for."""
        prompts = len(self.prompt) if isinstance(self.prompt, list) and _are_prompts(self.prompt) else 1
        return max(1, min(max(self.n or 1, self.best_of or 1), MOST_CHOICES)) * max(1, prompts)


def _are_prompts(items: list[Any]) -> bool:
    """Tell whether a list is one of prompts, not of the token ids of one."""
    return bool(items) and isinstance(items[0], str | list)


async def received_fields(request: Request[Any, Any, Any]) -> Fields:
    """Return the fields of the request's body, each as the client wrote it."""
    fields: Fields = await decoded(await request.body(), dict[str, msgspec.Raw])
    return fields


def generation_fields(
    fields: Fields, asked: Asked, kind: Kind, dialect: Dialect, upstream: Upstream
) -> Fields:
    """Return the fields of a generation as the upstream takes them."""
    sent = {name: value for name, value in fields.items() if name not in (*GATEWAY_FIELDS, *REACHING_FIELDS)}
    if dialect.forward_defaults and kind == "chat":
        sent = with_defaults(sent, CHAT_DEFAULTS)
    if asked.tools and asked.tool_choice is None:
        sent["tool_choice"] = raw(dialect.default_tool_choice)
    if not asked.tools and asked.tools is not None:
        sent["tools"] = NULL
    if not is_null(sent.get("stream")):
        sent["stream"] = raw(bool(asked.stream))  # "true" is true to us, but not to every server
    if asked.stream:
        options = received_options(fields)
        if upstream.type in COUNTING_STREAMS:
            sent["stream_options"] = raw({**options, "include_usage": raw(True)})
        else:
            sent.pop("stream_options", None)
    return adapted(upstream, kind, sent)


def received_options(fields: Fields) -> Fields:
    """Return the client's stream options, also those that we do not know."""
    given = fields.get("stream_options")
    return {} if given is None or is_null(given) else msgspec.json.decode(given, type=Fields)


def with_defaults(fields: Fields, defaults: dict[str, Any]) -> Fields:
    """Return the fields with the defaults of those that are absent."""
    return {**{name: raw(value) for name, value in defaults.items()}, **fields}


def reserve(
    fields: Fields, asked: Asked, kind: Kind, call: ModelCall, provider: Provider, prompt_tokens: int
) -> None:
    """Count the prompt and reserve for the answer; shorten it in ``fields`` to what the budget affords.

    Raises LimitExceededError, InsufficientBudgetError.
    """
    most = (
        UNKNOWN_CONTEXT
        if provider.max_context_length is None
        else provider.max_context_length - prompt_tokens
    )
    named = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    if named is None and kind == "completions":
        named = COMPLETION_TOKENS
    elif named is not None and provider.max_context_length is None:
        most = min(named, MOST_TOKENS)
    wanted = max(1, min(most if named is None else named, most))
    guess: Guess = "texts" if only_texts(asked.messages) else "mixed"
    allowed = call.reserve(prompt_tokens, wanted, asked.sequences, guess=guess)
    # Of unknown length by request and model: only what was reserved may be spent.
    unbounded = named is None and provider.max_context_length is None and call.reserved
    if allowed >= wanted and not unbounded:
        return
    names = [name for name in ("max_completion_tokens", "max_tokens") if not is_null(fields.get(name))]
    default = "max_completion_tokens" if provider.type == "openai" else "max_tokens"
    for name in names or [default]:
        fields[name] = raw(allowed)
    if "min_tokens" in fields:
        del fields["min_tokens"]
