"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.authentication import cache_scope_of
from appliance.api.dialect import Dialect
from appliance.api.disconnect import at_end, until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.event_stream import event_stream
from appliance.api.model_call import CHAT, begin
from appliance.api.openai.forwarding.forward import answered
from appliance.api.openai.generation.answer_head import answer_head
from appliance.api.openai.generation.checks import check_logprobs, check_ranges, check_relations, refused
from appliance.api.openai.generation.choices import submit
from appliance.api.openai.generation.completion_answer import Shape, completion_body, completion_events
from appliance.api.openai.generation.completion_choice import Showing
from appliance.api.openai.generation.context_limit import check_truncation
from appliance.api.openai.generation.fields import GenerationFields, StreamOptions
from appliance.api.openai.generation.guided_fields import constraint_spec
from appliance.api.openai.generation.prompts import Prompt, prompts_of
from appliance.api.openai.generation.request import (
    Wishes,
    affordable,
    check_amount,
    check_logprobs_amount,
    constrained,
    enforced_tokens,
    generation_request,
    sampling_of,
)
from appliance.api.openai.usage import Meter
from appliance.engines.generation.contract import GenerationRequest
from appliance.engines.generation.engine import GenerationEngine
from appliance.gateway.call import ModelCall
from appliance.gateway.catalog import Catalog
from appliance.gateway.routing.records import Provider

DEFAULT_MAX_TOKENS = 16
DEFAULT_TEMPERATURE = 1.0


class CompletionRequest(GenerationFields, kw_only=True):
    """The body; §4 of the contract."""

    prompt: str | list[Any]
    suffix: str | None = None
    logprobs: int | None = None


@post("/completions", status_code=200, operation_id="createCompletion", tags=["Completions"], access="key")
async def completions(request: Request[Any, Any, State]) -> Response[Any]:
    """Continue one or more prompts, given as text or as token ids."""
    call, body = await begin(request, CompletionRequest, CHAT)
    meter = Meter(call, dialect_of(request))

    async def local(provider: Provider) -> Response[Any]:
        return await _answer(request, body, call, provider, meter)

    return await answered(request, call, meter, "completions", local)


async def _answer(
    request: Request[Any, Any, State],
    body: CompletionRequest,
    call: ModelCall,
    provider: Provider,
    meter: Meter,
) -> Response[Any]:
    """Answer by an engine of this box."""
    catalog: Catalog = request.app.state.catalog
    dialect = dialect_of(request)
    model = catalog.find(provider.model_name)
    engine = catalog.engine(model, GenerationEngine, "chat")
    _check(body, dialect)
    spec = constraint_spec(body, dialect)
    check_truncation(body.truncate_prompt_tokens, engine.context_length)
    prompts = await prompts_of(
        body.prompt,
        engine,
        add_special_tokens=body.add_special_tokens is not False,
        last_tokens=body.truncate_prompt_tokens,
    )
    check_amount(body, len(prompts))
    requests = affordable(await _requests(request, body, prompts, engine, call), body, call)
    choices = submit(engine, await constrained(requests, spec, body, engine), body)
    at_end(request, choices.cancel)
    shape = Shape(
        head=answer_head("cmpl", body.model, model.manifest, engine.variant),
        prompts=prompts,
        meter=meter,
        echoes=await _echoes(prompts, engine) if body.echo else None,
        choices_per_prompt=body.choices,
        showing=Showing(
            vocabulary=engine,
            logprobs=body.logprobs,
            skip_special_tokens=body.skip_special_tokens is not False,
            spaces_between_special_tokens=body.spaces_between_special_tokens is not False,
        ),
        prompt_logprobs=body.prompt_logprobs,
    )
    if body.stream:
        return event_stream(
            completion_events(choices, shape, body.stream_options), dialect, on_failure=call.broken
        )
    answer = await until_disconnect(request, completion_body(choices, shape))
    return Response(answer, media_type="application/json")


def _check(body: CompletionRequest, dialect: Dialect) -> None:
    if body.suffix:
        raise refused("suffix", "suffix is not currently supported")
    if body.stream_options is not None and body.stream_options != StreamOptions() and not body.stream:
        raise refused("stream_options", "Stream options can only be defined when stream is True.")
    # A raw completion never calls a tool; what would have no effect is let pass.
    if body.tool_choice not in (None, "none", "auto"):
        raise refused("tool_choice", '`tool_choice` can only be "none" or "auto" for a text completion.')
    temperature = DEFAULT_TEMPERATURE if body.temperature is None else body.temperature
    max_tokens = None if body.enforced_str else _asked(body)
    check_relations(body, dialect, temperature=temperature, max_tokens=max_tokens)
    check_ranges(body, dialect, least_tokens=0 if body.echo else 1)
    check_logprobs(body.logprobs, "logprobs", "if passed, `logprobs` must be a positive value.")


def _asked(body: CompletionRequest) -> int:
    return DEFAULT_MAX_TOKENS if body.asked_tokens is None else body.asked_tokens


async def _requests(
    request: Request[Any, Any, State],
    body: CompletionRequest,
    prompts: list[Prompt],
    engine: GenerationEngine,
    call: ModelCall,
) -> list[GenerationRequest]:
    """Return what the engine is asked for each prompt. Raises InvalidRequestError when one does not fit."""
    prompt_logprobs = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(body.logprobs, prompt_logprobs or 0)
    temperature = DEFAULT_TEMPERATURE if body.temperature is None else body.temperature
    wishes = Wishes(
        sampling=sampling_of(body, temperature, engine.vocab_size),
        max_tokens=body.asked_tokens if body.enforced_str else _asked(body),
        enforced=await enforced_tokens(body, engine),
        logprobs=body.logprobs,
        prompt_logprobs=prompt_logprobs,
        cache_scope=cache_scope_of(request),
        priority=call.priority,
    )
    requests = [generation_request(body, prompt.ids, wishes, engine, "prompt") for prompt in prompts]
    check_logprobs_amount(requests, body.choices)
    return requests


async def _echoes(prompts: list[Prompt], engine: GenerationEngine) -> list[str]:
    """Return the prompts' texts, of token ids with their control tokens."""
    return [
        await asyncio.to_thread(engine.decode, prompt.ids, skip_special_tokens=False)
        if prompt.text is None
        else prompt.text
        for prompt in prompts
    ]
