"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.authentication import cache_scope_of
from appliance.api.body import read_json
from appliance.api.dialect import Dialect
from appliance.api.disconnect import at_end, until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.event_stream import event_stream
from appliance.api.knowledge.search_tool import SearchArgs, check_required, refuse_search
from appliance.api.model_call import CHAT, begin
from appliance.api.openai.checked_fields import as_model_server
from appliance.api.openai.forwarding.forward import answered
from appliance.api.openai.generation.answer_head import answer_head
from appliance.api.openai.generation.chat_answer import ChatShape, chat_body, chat_events
from appliance.api.openai.generation.chat_turn import TextTurn, Turn
from appliance.api.openai.generation.checks import (
    check_logprobs,
    check_ranges,
    check_relations,
    check_stop_count,
    naming,
    refused,
)
from appliance.api.openai.generation.choices import submit
from appliance.api.openai.generation.context_limit import check_truncation
from appliance.api.openai.generation.fields import GenerationFields, StreamOptions
from appliance.api.openai.generation.guided_fields import constraint_spec
from appliance.api.openai.generation.messages import Message, template_messages
from appliance.api.openai.generation.request import (
    Wishes,
    affordable,
    check_logprobs_amount,
    constrained,
    enforced_tokens,
    generation_request,
    sampling_of,
)
from appliance.api.openai.generation.template_fields import check_template_fields, template_variables
from appliance.api.openai.generation.tool_fields import ToolUse, tool_use
from appliance.api.openai.usage import Meter
from appliance.config import Settings
from appliance.engines.generation.constraints.compiler import ConstraintSpec, LarkGrammar
from appliance.engines.generation.engine import GenerationEngine
from appliance.gateway.call import ModelCall
from appliance.gateway.catalog import Catalog
from appliance.gateway.routing.records import Provider


class ChatRequest(GenerationFields, kw_only=True):
    """The body; §3 of the contract."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[Any] | None = None
    reasoning_effort: str | None = None
    reasoning_enabled: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Any = None

    @property
    def shown_logprobs(self) -> int | None:
        """The best tokens beside each token's log probability; None = no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class SearchChatRequest(ChatRequest, kw_only=True):
    """The body where OpenGateLLM's search tool is known."""

    search: bool | None = None
    search_args: SearchArgs | None = None


class DeclaredChatRequest(msgspec.Struct, kw_only=True):
    """What OpenGateLLM's gateway itself checks of the body; §9.1 of its contract."""

    model: str
    messages: list[Any]
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    search: bool | None = None
    search_args: SearchArgs | None = None


@post("/chat/completions", status_code=200, operation_id="createChatCompletion", tags=["Chat"], access="key")
async def chat_completions(request: Request[Any, Any, State]) -> Response[Any]:
    """Answer a conversation, at once or as a stream of server-sent events."""
    dialect = dialect_of(request)
    call, body = await _begin(request, dialect)
    meter = Meter(call, dialect)

    async def local(provider: Provider) -> Response[Any]:
        known = body if isinstance(body, ChatRequest) else await read_json(request, ChatRequest)
        return await _answer(request, known, call, provider, meter)

    with as_model_server(dialect):
        return await answered(request, call, meter, "chat", local)


async def _begin(
    request: Request[Any, Any, State], dialect: Dialect
) -> tuple[ModelCall, ChatRequest | DeclaredChatRequest]:
    """Admit the request and check the fields that the mount itself declares."""
    if not dialect.search_tool:
        return await begin(request, ChatRequest, CHAT)
    call: ModelCall
    body: SearchChatRequest | DeclaredChatRequest

    def check(body: SearchChatRequest | DeclaredChatRequest) -> None:
        if isinstance(body, DeclaredChatRequest) and isinstance(body.stop, list):
            check_stop_count(body.stop, dialect.max_stops)
        check_required(request)

    if dialect.declared_fields_only:
        call, body = await begin(request, DeclaredChatRequest, CHAT, check=check)
    else:
        call, body = await begin(request, SearchChatRequest, CHAT, check=check)
    refuse_search(body)
    return call, body


async def _answer(
    request: Request[Any, Any, State], body: ChatRequest, call: ModelCall, provider: Provider, meter: Meter
) -> Response[Any]:
    """Answer by an engine of this box."""
    catalog: Catalog = request.app.state.catalog
    dialect = dialect_of(request)
    model = catalog.find(provider.model_name)
    engine = catalog.engine(model, GenerationEngine, "chat")
    temperature = _temperature(body, dialect, request.app.state.settings)
    _check(body, dialect, temperature)
    tools = tool_use(body, dialect, has_format=engine.tool_format is not None)
    spec = _constraint_spec(body, dialect, tools, engine)
    check_truncation(body.truncate_prompt_tokens, engine.context_length)
    messages = template_messages(body.messages)
    prompt = await _prompt(body, messages, tools, engine)
    wishes = Wishes(
        sampling=sampling_of(body, temperature, engine.vocab_size),
        max_tokens=body.asked_tokens,
        enforced=await enforced_tokens(body, engine),
        logprobs=body.shown_logprobs,
        prompt_logprobs=body.prompt_logprobs,
        cache_scope=cache_scope_of(request),
        priority=call.priority,
    )
    asked = affordable([generation_request(body, prompt, wishes, engine, "messages")], body, call)[0]
    check_logprobs_amount([asked], body.choices)
    choices = submit(engine, await constrained([asked], spec, body, engine), body)
    at_end(request, choices.cancel)
    role = "assistant" if body.add_generation_prompt is not False else messages[-1]["role"]
    shape = ChatShape(
        head=answer_head("chatcmpl", _shown_model(body, dialect, provider), model.manifest, engine.variant),
        vocabulary=engine,
        meter=meter,
        choices=body.choices,
        role=role,
        echo=messages[-1]["content"] if body.echo and messages[-1]["role"] == role else "",
        logprobs=body.shown_logprobs,
        prompt_logprobs=body.prompt_logprobs,
        turn=lambda: _turn(body, tools, engine),
        silent=tools.silent_content(dialect),
        vllm_fields=dialect.vllm_fields,
    )
    if body.stream:
        options = body.stream_options
        if dialect.gateway_streams and not (options and options.usage):
            options = StreamOptions(include_usage=True)
        return event_stream(chat_events(choices, shape, options), dialect, on_failure=call.broken)
    answer = await until_disconnect(request, chat_body(choices, shape))
    return Response(answer, media_type="application/json")


def _shown_model(body: ChatRequest, dialect: Dialect, provider: Provider) -> str:
    """Return the model's name in the answer: the one that was asked for, or in a gateway's streams the provider's."""
    return provider.model_name if body.stream and dialect.gateway_streams else body.model


def _temperature(body: ChatRequest, dialect: Dialect, settings: Settings) -> float:
    if body.temperature is not None:
        return body.temperature
    return settings.default_temperature if dialect.chat_temperature is None else dialect.chat_temperature


def _check(body: ChatRequest, dialect: Dialect, temperature: float) -> None:
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "stream_options can only be set if stream is true")
    if (body.top_logprobs or 0) > 0 and not body.logprobs:
        raise refused("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.")
    if body.continue_final_message and body.add_generation_prompt is not False:
        raise refused(
            "continue_final_message",
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
        )
    check_relations(
        body,
        dialect,
        temperature=temperature,
        max_tokens=None if body.enforced_str else body.asked_tokens,
    )
    check_ranges(body, dialect)
    check_logprobs(body.top_logprobs, "top_logprobs", "`top_logprobs` must be a positive value.")
    check_template_fields(body.chat_template, body.chat_template_kwargs, body.documents)


def _constraint_spec(
    body: ChatRequest, dialect: Dialect, tools: ToolUse, engine: GenerationEngine
) -> ConstraintSpec | None:
    """Return what the answer's text is held to: what the request says, else the form of the calls it asks for."""
    spec = constraint_spec(body, dialect)
    if spec is not None and tools.forced:
        raise refused("tool_choice", "You can only either use guided decoding or tools, not both.")
    if spec is not None or engine.tool_format is None:
        return spec
    grammar = tools.grammar(engine.tool_format, engine.added_token_id)
    return None if grammar is None else LarkGrammar(grammar)


async def _prompt(
    body: ChatRequest, messages: list[dict[str, Any]], tools: ToolUse, engine: GenerationEngine
) -> list[int]:
    with naming("messages"):
        prompt = await engine.chat_prompt(
            messages,
            tools=tools.offered,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            add_special_tokens=bool(body.add_special_tokens),
            documents=body.documents,
            template_kwargs=template_variables(
                body.chat_template_kwargs, body.reasoning_effort, body.reasoning_enabled
            ),
        )
    return prompt if body.truncate_prompt_tokens is None else prompt[-body.truncate_prompt_tokens :]


def _turn(body: ChatRequest, tools: ToolUse, engine: GenerationEngine) -> Turn:
    """Return the reader of a choice; an enforced answer is text, whatever it looks like."""
    if engine.tool_format is None or body.enforced_str:
        return TextTurn()
    return tools.turn(engine.tool_format) or TextTurn()
