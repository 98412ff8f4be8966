"""POST /tokenize, POST /detokenize and GET /tokenizer_info: the chat model's tokenizer, as vLLM shows it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.params import FromQuery

from appliance.api.authentication import account_of
from appliance.api.body import read_json
from appliance.api.model_call import CHAT
from appliance.api.openai.generation.messages import Message, template_messages
from appliance.engines.generation.engine import GenerationEngine
from appliance.errors import InvalidRequestError
from appliance.gateway.catalog import Catalog
from appliance.gateway.errors import WrongTaskError
from appliance.gateway.gateway import Gateway

# More ids than this, for each token of the context, are no text that /tokenize would take.
SLACK = 16
# The class of Hugging Face's library that reads a pack's tokenizer.json.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """The body: a ``prompt``, or ``messages`` for the chat template; §20 of the contract.

    Without ``model`` it is the box's default chat model. ``add_special_tokens`` is true for a prompt
    and false for messages unless given.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class Tokens(msgspec.Struct, kw_only=True):
    """The token ids of a text, how many they are, and how many the model takes."""

    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """The body: ids of the model's vocabulary."""

    model: str | None = None
    tokens: list[int]


class DetokenizedText(msgspec.Struct, kw_only=True):
    """The text of token ids, control tokens by their names."""

    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """What clients that render conversations themselves need; null where the model has none."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    model_max_length: int


@post("/tokenize", status_code=200, operation_id="tokenize", tags=["Tokenizer"], access="key")
async def tokenize(request: Request[Any, Any, State]) -> Response[bytes]:
    """Return the token ids of a prompt, or of messages in the model's chat template."""
    body = await read_json(request, TokenizeRequest)
    engine = _engine(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("Either `prompt` or `messages` must be given, not both.", param="prompt")
    if body.messages is not None:
        ids = await _chat_tokens(engine, body, body.messages)
    else:
        ids = await engine.encode(str(body.prompt), body.add_special_tokens is not False)
    answer = Tokens(count=len(ids), max_model_len=engine.context_length, tokens=ids)
    return Response(msgspec.json.encode(answer), media_type="application/json")


@post("/detokenize", status_code=200, operation_id="detokenize", tags=["Tokenizer"], access="key")
async def detokenize(request: Request[Any, Any, State]) -> Response[bytes]:
    """Return the text of token ids."""
    body = await read_json(request, DetokenizeRequest)
    engine = _engine(request, body.model)
    _check_ids(body.tokens, engine)
    text = await asyncio.to_thread(engine.decode, body.tokens, skip_special_tokens=False)
    return Response(msgspec.json.encode(DetokenizedText(prompt=text)), media_type="application/json")


@get("/tokenizer_info", operation_id="tokenizerInfo", tags=["Tokenizer"], access="key")
async def tokenizer_info(
    request: Request[Any, Any, State], model: FromQuery[str | None] = None
) -> Response[bytes]:
    """Describe the tokenizer: its special tokens and the chat template."""
    engine = _engine(request, model)
    answer = TokenizerInfo(
        tokenizer_class=TOKENIZER_CLASS,
        bos_token=engine.bos_token or None,
        eos_token=engine.eos_token or None,
        # Packs name no token for padding, which decoders are not trained on; clients pad with the end.
        pad_token=engine.eos_token or None,
        chat_template=engine.template_text,
        model_max_length=engine.context_length,
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _engine(request: Request[Any, Any, State], model: str | None) -> GenerationEngine:
    """Return the engine of a model that the caller may see, None being the default one.

    Raises ModelNotFoundError, WrongTaskError, ModelLoadingError.
    """
    catalog: Catalog = request.app.state.catalog
    gateway: Gateway = request.app.state.gateway
    account = account_of(request)
    name = gateway.default_model(account, CHAT) if model is None else model
    router = gateway.model(account, name)
    pack = next((provider.model_name for provider in router.providers if provider.is_local), None)
    if pack is None:
        raise WrongTaskError(f"The tokenizer of `{router.name}` is not on this box.", param="model")
    return catalog.engine(catalog.find(pack), GenerationEngine, "chat")


async def _chat_tokens(engine: GenerationEngine, body: TokenizeRequest, messages: list[Message]) -> list[int]:
    open_end = bool(body.continue_final_message)
    header = body.add_generation_prompt is not False
    if open_end and header:
        raise InvalidRequestError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            param="continue_final_message",
        )
    return await engine.chat_prompt(
        template_messages(messages),
        add_generation_prompt=header,
        continue_final_message=open_end,
        add_special_tokens=bool(body.add_special_tokens),
    )


def _check_ids(ids: list[int], engine: GenerationEngine) -> None:
    longest = SLACK * engine.context_length
    if len(ids) > longest:
        raise InvalidRequestError(f"tokens may hold at most {longest} ids, got {len(ids)}.", param="tokens")
    strange = next((token for token in ids if not 0 <= token < engine.vocab_size), None)
    if strange is not None:
        raise InvalidRequestError(
            f"Token id {strange} is out of vocabulary: this model's ids are 0 to {engine.vocab_size - 1}.",
            param="tokens",
        )
