"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.authentication import account_of
from appliance.api.body import read_json
from appliance.api.dialect import Dialect
from appliance.api.disconnect import at_end, until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.event_stream import event_stream
from appliance.api.openai.answer_head import answer_head
from appliance.api.openai.generation_fields import (
    MAX_LOGPROBS,
    NO_EFFECT,
    GenerationFields,
    check_bounds,
    check_max_tokens,
    completion_limit,
    refuse_unserved,
    sampling_of,
    unserved,
)
from appliance.api.openai.messages import Message, template_messages
from appliance.api.openai.usage import Usage, usage
from appliance.config import Settings
from appliance.engines.generation.contract import Generation, GenerationRequest
from appliance.engines.generation.engine import GenerationEngine
from appliance.errors import InvalidRequestError
from appliance.gateway.catalog import Catalog


class ChatRequest(GenerationFields, kw_only=True):
    """The body; §3 of the contract."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None


CHAT_NO_EFFECT: dict[str, tuple[Any, ...]] = NO_EFFECT | {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
}


class AssistantMessage(msgspec.Struct, kw_only=True):
    """The answer of one choice."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] = []
    reasoning_content: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    """One choice of an unstreamed answer."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: str
    stop_reason: str | int | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """An unstreamed answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: None = None
    system_fingerprint: str
    prompt_logprobs: None = None
    kv_transfer_params: None = None


@post("/chat/completions", status_code=200, operation_id="createChatCompletion", tags=["Chat"])
async def chat_completions(request: Request[Any, Any, State]) -> Response[Any]:
    """Answer a conversation, at once or as a stream of server-sent events."""
    body = await read_json(request, ChatRequest)
    catalog: Catalog = request.app.state.catalog
    settings: Settings = request.app.state.settings
    dialect = dialect_of(request)
    model = catalog.find(body.model)
    engine = catalog.engine(model, GenerationEngine, "chat")
    _check(body, dialect)
    prompt = await engine.chat_prompt(template_messages(body.messages))
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    default_temperature = settings.default_temperature
    if dialect.chat_temperature is not None:
        default_temperature = dialect.chat_temperature
    generation = engine.submit(
        GenerationRequest(
            prompt=prompt,
            max_tokens=completion_limit(len(prompt), asked, engine.context_length, messages=True),
            sampling=sampling_of(body, default_temperature),
            stop=body.stop_strings(),
            cache_scope=account_of(request).cache_scope,
        )
    )
    at_end(request, generation.cancel)
    head = answer_head("chatcmpl", body.model, model.manifest)
    if body.stream:
        return event_stream(_chunks(generation, head, body), dialect)
    return await until_disconnect(request, _complete(generation, head))


def _check(body: ChatRequest, dialect: Dialect) -> None:
    for name in sorted(dialect.refused_fields):
        if getattr(body, name, None) is not None:
            raise unserved(name)
    check_bounds(body)
    if body.top_logprobs is not None and body.top_logprobs < 0:
        raise InvalidRequestError("`top_logprobs` must be a positive value.", param="top_logprobs")
    if body.top_logprobs is not None and body.top_logprobs > MAX_LOGPROBS:
        raise InvalidRequestError(f"Cannot request more than {MAX_LOGPROBS} logprobs.", param="top_logprobs")
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequestError(
            "when using `top_logprobs`, `logprobs` must be set to true.", param="top_logprobs"
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options can only be set if stream is true", param="stream_options")
    refuse_unserved(body, CHAT_NO_EFFECT)
    if body.max_completion_tokens is not None:
        check_max_tokens("max_completion_tokens", body.max_completion_tokens)


async def _complete(generation: Generation, head: dict[str, Any]) -> Response[bytes]:
    parts: list[str] = []
    finish_reason, stop_reason = "stop", None
    async for delta in generation:
        parts.append(delta.text)
        if delta.finish_reason is not None:
            finish_reason, stop_reason = delta.finish_reason, delta.stop_reason
    answer = ChatCompletion(
        **head,
        choices=[
            ChatChoice(
                index=0,
                message=AssistantMessage(content="".join(parts)),
                finish_reason=finish_reason,
                stop_reason=stop_reason,
            )
        ],
        usage=usage(generation.prompt_tokens, generation.completion_tokens),
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _chunks(
    generation: Generation, head: dict[str, Any], body: ChatRequest
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunk objects: role, text, finish, and the usage when asked for."""
    options = body.stream_options
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(
        delta: dict[str, Any], finish: str | None = None, stop: str | int | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if finish is not None:
            choice["stop_reason"] = stop
        shaped = {**head, "choices": [choice]}
        if options is not None and options.usage:
            # OpenAI's clients expect the key in every chunk, null until the last.
            shaped["usage"] = counts() if options.continuous_usage_stats else None
        return shaped

    def counts() -> Usage:
        return usage(generation.prompt_tokens, generation.completion_tokens)

    yield chunk({"role": "assistant", "content": ""})
    async for delta in generation:
        if delta.text or delta.finish_reason:
            text = {"content": delta.text} if delta.text else {}
            yield chunk(text, delta.finish_reason, delta.stop_reason)
    if options is not None and options.usage:
        yield {**head, "choices": [], "usage": counts()}
