"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from typing import Any, Literal

import msgspec
import numpy as np
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.body import read_json
from appliance.api.disconnect import until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.field_errors import FieldError, UnprocessableError
from appliance.api.model_call import EMBEDDING, begin
from appliance.api.openai.checked_fields import as_model_server
from appliance.api.openai.forwarding.forward import answered
from appliance.api.openai.text_or_tokens import text_or_tokens
from appliance.api.openai.usage import Meter, PromptUsage
from appliance.api.validation import MAX_ERRORS, list_length_error, text_length_error, value_errors
from appliance.engines.encoding.embedding import EmbeddingEngine
from appliance.errors import InvalidRequestError
from appliance.gateway.call import ModelCall
from appliance.gateway.catalog import Catalog
from appliance.gateway.routing.records import Provider

MAX_INPUTS = 2048
# Texts beyond these are refused before they are tokenised: no prose has so many characters to a token.
CHARACTERS_PER_TOKEN = 256
MAX_CHARACTERS = 16_000_000
# Of a text that is to be cut, only so many characters a token are read.
CUT_CHARACTERS_PER_TOKEN = 64
# Encoding numbers as JSON holds the GIL: this many rows take some milliseconds.
ROWS_AT_ONCE = 64


class EmbeddingFields(msgspec.Struct, kw_only=True):
    """What every mount has alike."""

    model: str
    input: str | list[Any]
    dimensions: int | None = None


class DeclaredEmbeddingRequest(EmbeddingFields, kw_only=True):
    """What OpenGateLLM's gateway itself checks of the body."""

    encoding_format: Literal["float"] | None = None


class EmbeddingRequest(EmbeddingFields, kw_only=True):
    """The body; §15 of the contract. The fields from ``user`` on are accepted and ignored."""

    encoding_format: str | None = None
    truncate_prompt_tokens: int | None = None
    user: Any = None
    additional_data: Any = None
    input_type: Any = None
    task: Any = None
    prompt_name: Any = None
    instruction: Any = None


class EmbeddingList(msgspec.Struct, kw_only=True):
    """The answer, in the order of the input; each item of ``data`` is encoded already."""

    object: str = "list"
    id: str
    created: int | msgspec.UnsetType
    model: str
    data: list[msgspec.Raw]
    usage: PromptUsage


@post("/embeddings", status_code=200, operation_id="createEmbedding", tags=["Embeddings"], access="key")
async def embeddings(request: Request[Any, Any, State]) -> Response[Any]:
    """Turn texts or token arrays into vectors of length 1."""
    dialect = dialect_of(request)
    call: ModelCall
    body: EmbeddingFields
    if dialect.declared_fields_only:
        call, body = await begin(request, DeclaredEmbeddingRequest, EMBEDDING, check=_check_plain)
    else:
        call, body = await begin(request, EmbeddingRequest, EMBEDDING)
    meter = Meter(call, dialect)

    async def local(provider: Provider) -> Response[Any]:
        known = body if isinstance(body, EmbeddingRequest) else await read_json(request, EmbeddingRequest)
        return await _answer(request, known, call, provider, meter)

    with as_model_server(dialect):
        return await answered(request, call, meter, "embeddings", local)


async def _answer(
    request: Request[Any, Any, State],
    body: EmbeddingRequest,
    call: ModelCall,
    provider: Provider,
    meter: Meter,
) -> Response[bytes]:
    """Answer by an engine of this box."""
    catalog: Catalog = request.app.state.catalog
    engine = catalog.engine(catalog.find(provider.model_name), EmbeddingEngine, "embedding")
    _check(body, engine)
    sequences = await _sequences(body, engine)
    call.reserve(sum(len(ids) for ids in sequences))
    vectors = await until_disconnect(request, engine.embed(sequences, priority=call.priority))
    rows = _cut(vectors, body.dimensions)
    encode = _encode_base64 if body.encoding_format == "base64" else _encode_floats
    data: list[msgspec.Raw] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        data += await asyncio.to_thread(encode, rows[start : start + ROWS_AT_ONCE], start)
    answer = EmbeddingList(
        id=f"embd-{uuid.uuid4().hex}",
        created=msgspec.UNSET if dialect_of(request).plain_encoding else int(time.time()),
        model=body.model,
        data=data,
        usage=meter.prompt_usage(),
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _check_plain(body: EmbeddingFields) -> None:
    """Check what OpenGateLLM's mount declares more narrowly. Raises UnprocessableError."""
    errors: list[FieldError] = []
    forms = (
        (list[int], "list[int]"),
        (list[list[int]], "list[list[int]]"),
        (str, "str"),
        (list[str], "list[str]"),
    )
    wrong = [value_errors(body.input, form, ["body", "input", name]) for form, name in forms]
    if all(wrong):
        errors += [each for form in wrong for each in form]
    elif not body.input:
        shortest = text_length_error if isinstance(body.input, str) else list_length_error
        errors.append(shortest(["body", "input"], body.input, least=1))  # type: ignore[arg-type] # each its own kind
    if errors:
        raise UnprocessableError(errors[:MAX_ERRORS])


def _check(body: EmbeddingRequest, engine: EmbeddingEngine) -> None:
    if body.encoding_format not in (None, "float", "base64"):
        raise InvalidRequestError(
            "encoding_format must match the pattern '^(float|base64)$'", param="encoding_format"
        )
    if body.dimensions is not None and not 1 <= body.dimensions <= engine.dimensions:
        raise InvalidRequestError(
            f"dimensions must be in [1, {engine.dimensions}], got {body.dimensions}.", param="dimensions"
        )
    keep = body.truncate_prompt_tokens
    if keep is not None and keep != -1 and keep < 1:
        raise InvalidRequestError(
            f"truncate_prompt_tokens must be -1 or at least 1, got {keep}.", param="truncate_prompt_tokens"
        )
    if keep is not None and keep > engine.context_length:
        raise InvalidRequestError(
            "truncate_prompt_tokens value is greater than max_model_len. Please, select a smaller truncation size.",
            param="truncate_prompt_tokens",
        )


async def _sequences(body: EmbeddingRequest, engine: EmbeddingEngine) -> list[list[int]]:
    """Return the token ids of every input. Raises InvalidRequestError for empty, mixed or too long input."""
    context = engine.context_length
    keep = context if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    # The last tokens are kept: of a list far beyond the context only its end is looked at.
    value = body.input if keep is None else _last_items(body.input, context)
    _check_token_counts(value, context)
    texts, sequences = text_or_tokens(value, "input", max_items=MAX_INPUTS, context_length=context)
    count = len(texts) + len(sequences)
    if not count or not all(texts) or not all(sequences):
        raise InvalidRequestError("input must not be empty, nor hold an empty item.", param="input")
    if not texts:
        return sequences if keep is None else [ids[-keep:] for ids in sequences]
    if keep is None:
        _check_lengths(texts, context)
        return await engine.tokenize(texts)
    return await _last_tokens(texts, keep, engine)


def _cut(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Keep the first ``dimensions`` values of each row and bring it back to length 1."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


async def _last_tokens(texts: list[str], keep: int, engine: EmbeddingEngine) -> list[list[int]]:
    """Return the last ``keep`` tokens of each text, special tokens counted and in their places.

    A model reads its meaning off the special tokens, so they stay; the text loses its beginning. Only
    the end of a long text is tokenised.
    """
    tails = [text[-keep * CUT_CHARACTERS_PER_TOKEN :] for text in texts]
    _check_lengths(tails, engine.context_length)
    empty, letter, *sequences = await engine.tokenize(["", "a", *tails])
    before = 0
    while before < len(empty) and letter[before] == empty[before]:
        before += 1
    if keep < len(empty):
        return [empty[len(empty) - keep :] for _ in texts]
    return [ids if len(ids) <= keep else ids[:before] + ids[len(ids) - keep + before :] for ids in sequences]


def _last_items(value: str | list[Any], count: int) -> str | list[Any]:
    """Return token lists cut to their last ``count`` items; anything else as it is."""
    if isinstance(value, str) or not value:
        return value
    if type(value[0]) is int:
        return value[-count:]
    if len(value) > MAX_INPUTS:
        return value
    return [item[-count:] if isinstance(item, list) else item for item in value]


def _check_token_counts(value: str | list[Any], context_length: int) -> None:
    """Refuse a token list beyond the context, before anything looks at its items."""
    if isinstance(value, str) or not value:
        return
    lists = [value] if type(value[0]) is int else value[:MAX_INPUTS]
    longest = max((len(item) for item in lists if isinstance(item, list)), default=0)
    if longest > context_length:
        raise _too_long(context_length, f"{longest} tokens")


def _check_lengths(texts: list[str], context_length: int) -> None:
    longest, total = max(map(len, texts)), sum(map(len, texts))
    if longest > context_length * CHARACTERS_PER_TOKEN:
        raise _too_long(context_length, f"a text of {longest} characters")
    if total > MAX_CHARACTERS:
        raise _too_long(context_length, f"{len(texts)} texts of {total} characters together")


def _too_long(context_length: int, asked: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"This model's maximum context length is {context_length} tokens. However, you requested {asked} in the input "
        "for embedding generation. Please reduce the length of the input.",
        param="input",
        code="context_length_exceeded",
    )


def _encode_floats(rows: np.ndarray, start: int) -> list[msgspec.Raw]:
    return [_item(start + index, row.tolist()) for index, row in enumerate(rows)]


def _encode_base64(rows: np.ndarray, start: int) -> list[msgspec.Raw]:
    rows = np.ascontiguousarray(rows, dtype="<f4")
    return [_item(start + index, base64.b64encode(row).decode()) for index, row in enumerate(rows)]


def _item(index: int, embedding: list[float] | str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode({"object": "embedding", "index": index, "embedding": embedding}))
