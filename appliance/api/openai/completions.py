"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.authentication import account_of
from appliance.api.body import read_json
from appliance.api.disconnect import at_end, until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.event_stream import event_stream
from appliance.api.openai.answer_head import answer_head
from appliance.api.openai.generation_fields import (
    MAX_LOGPROBS,
    NO_EFFECT,
    GenerationFields,
    StreamOptions,
    check_bounds,
    completion_limit,
    refuse_unserved,
    sampling_of,
)
from appliance.api.openai.text_or_tokens import text_or_tokens
from appliance.api.openai.usage import Usage, usage
from appliance.engines.generation.contract import Delta, Generation, GenerationRequest
from appliance.engines.generation.engine import GenerationEngine
from appliance.errors import InvalidRequestError
from appliance.gateway.catalog import Catalog

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 128


class CompletionRequest(GenerationFields, kw_only=True):
    """The body; §4 of the contract."""

    prompt: str | list[Any]
    suffix: str | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None


COMPLETION_NO_EFFECT: dict[str, tuple[Any, ...]] = NO_EFFECT | {"logprobs": ()}


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One choice: the completion of one prompt."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: str
    stop_reason: str | int | None = None
    prompt_logprobs: None = None


class Completion(msgspec.Struct, kw_only=True):
    """An unstreamed answer."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


@post("/completions", status_code=200, operation_id="createCompletion", tags=["Completions"])
async def completions(request: Request[Any, Any, State]) -> Response[Any]:
    """Continue one or more prompts, given as text or as token ids."""
    body = await read_json(request, CompletionRequest)
    catalog: Catalog = request.app.state.catalog
    dialect = dialect_of(request)
    model = catalog.find(body.model)
    engine = catalog.engine(model, GenerationEngine, "chat")
    _check(body)
    prompts = await _prompt_ids(body, engine)
    asked = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    sampling = sampling_of(body, 1.0)
    requests = [
        GenerationRequest(
            prompt=ids,
            max_tokens=completion_limit(len(ids), asked, engine.context_length, messages=False),
            sampling=sampling,
            stop=body.stop_strings(),
            cache_scope=account_of(request).cache_scope,
        )
        for ids in prompts
    ]
    generations: list[Generation] = []
    for item in requests:
        generations.append(engine.submit(item))
        at_end(request, generations[-1].cancel)
    head = answer_head("cmpl", body.model, model.manifest)
    if body.stream:
        return event_stream(_chunks(generations, head, body), dialect)
    return await until_disconnect(request, _complete(generations, head))


def _check(body: CompletionRequest) -> None:
    check_bounds(body)
    if body.suffix:
        raise InvalidRequestError("suffix is not currently supported", param="suffix")
    if body.stream_options is not None and body.stream_options != StreamOptions() and not body.stream:
        raise InvalidRequestError(
            "Stream options can only be defined when stream is True.", param="stream_options"
        )
    if body.logprobs is not None and body.logprobs < 0:
        raise InvalidRequestError("if passed, `logprobs` must be a positive value.", param="logprobs")
    if body.logprobs is not None and body.logprobs > MAX_LOGPROBS:
        raise InvalidRequestError(f"Cannot request more than {MAX_LOGPROBS} logprobs.", param="logprobs")
    refuse_unserved(body, COMPLETION_NO_EFFECT)


async def _prompt_ids(body: CompletionRequest, engine: GenerationEngine) -> list[list[int]]:
    """Return the token ids of every prompt. Raises InvalidRequestError for a form the contract has not."""
    texts, token_lists = text_or_tokens(
        body.prompt, "prompt", max_items=MAX_PROMPTS, context_length=engine.context_length
    )
    if not texts and not token_lists:
        raise InvalidRequestError("please provide at least one prompt", param="prompt")
    if not all(texts) or not all(token_lists):
        raise _empty_prompt()
    for ids in token_lists:
        if not 0 <= min(ids) <= max(ids) < engine.vocab_size:
            wrong = max(ids) if max(ids) >= engine.vocab_size else min(ids)
            raise InvalidRequestError(f"Token id {wrong} is out of vocabulary", param="prompt")
    special = body.add_special_tokens is None or body.add_special_tokens
    encoded = [await engine.encode(text, special) for text in texts]
    if not all(encoded):
        raise _empty_prompt()
    return encoded or token_lists


def _empty_prompt() -> InvalidRequestError:
    return InvalidRequestError("Either prompt or prompt_ids should be provided.", param="prompt")


def _usage(generations: list[Generation]) -> Usage:
    return usage(
        sum(generation.prompt_tokens for generation in generations),
        sum(generation.completion_tokens for generation in generations),
    )


async def _complete(generations: list[Generation], head: dict[str, Any]) -> Response[bytes]:
    choices: list[CompletionChoice] = []
    for index, generation in enumerate(generations):
        parts: list[str] = []
        last = Delta(text="", token_ids=[], finish_reason="stop")
        async for last in generation:
            parts.append(last.text)
        choices.append(
            CompletionChoice(
                index=index,
                text="".join(parts),
                finish_reason=last.finish_reason or "stop",
                stop_reason=last.stop_reason,
            )
        )
    answer = Completion(**head, choices=choices, usage=_usage(generations))
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _chunks(
    generations: list[Generation], head: dict[str, Any], body: CompletionRequest
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield chunk objects of all prompts, interleaved as their tokens come."""
    options = body.stream_options
    head = {**head, "object": "text_completion"}
    with_usage = options is not None and options.usage
    async with aclosing(_merged(generations)) as deltas:
        async for index, delta in deltas:
            if delta.text or delta.finish_reason is not None:
                chunk: dict[str, Any] = {**head, "choices": [_choice(index, delta)]}
                if with_usage:
                    running = options is not None and options.continuous_usage_stats
                    chunk["usage"] = _usage(generations) if running else None
                yield chunk
    if with_usage:
        yield {**head, "choices": [], "usage": _usage(generations)}


def _choice(index: int, delta: Delta) -> dict[str, Any]:
    return {
        "index": index,
        "text": delta.text,
        "logprobs": None,
        "finish_reason": delta.finish_reason,
        "stop_reason": delta.stop_reason,
    }


async def _merged(generations: list[Generation]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Yield the deltas of several generations as they come, each with its position."""
    queue: asyncio.Queue[tuple[int, Delta | None]] = asyncio.Queue()

    async def forward(index: int, generation: Generation) -> None:
        try:
            async for delta in generation:
                queue.put_nowait((index, delta))
        finally:
            queue.put_nowait((index, None))

    tasks = [asyncio.create_task(forward(index, item)) for index, item in enumerate(generations)]
    open_streams = len(tasks)
    try:
        while open_streams:
            index, item = await queue.get()
            if item is None:
                open_streams -= 1
                await tasks[index]  # raises what ended this one
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
