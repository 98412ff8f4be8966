"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from typing import Any

import msgspec
import numpy as np
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.body import read_json
from appliance.api.disconnect import until_disconnect
from appliance.api.openai.text_or_tokens import text_or_tokens
from appliance.api.openai.usage import PromptUsage, prompt_usage
from appliance.engines.encoding.embedding import EmbeddingEngine
from appliance.errors import InvalidRequestError
from appliance.gateway.catalog import Catalog

MAX_INPUTS = 2048
# Texts beyond these are refused before they are tokenised: no prose has so many characters to a token.
CHARACTERS_PER_TOKEN = 256
MAX_CHARACTERS = 16_000_000
# Encoding numbers as JSON holds the GIL: this many rows take some milliseconds.
ROWS_AT_ONCE = 64


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body; §15 of the contract. ``user`` and ``additional_data`` are accepted and ignored."""

    model: str
    input: str | list[Any]
    encoding_format: str | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    user: Any = None
    additional_data: Any = None


class EmbeddingList(msgspec.Struct, kw_only=True):
    """The answer, in the order of the input; each item of ``data`` is encoded already."""

    object: str = "list"
    id: str
    created: int
    model: str
    data: list[msgspec.Raw]
    usage: PromptUsage


@post("/embeddings", status_code=200, operation_id="createEmbedding", tags=["Embeddings"])
async def embeddings(request: Request[Any, Any, State]) -> Response[bytes]:
    """Turn texts or token arrays into vectors of length 1."""
    body = await read_json(request, EmbeddingRequest)
    catalog: Catalog = request.app.state.catalog
    engine = catalog.engine(catalog.find(body.model), EmbeddingEngine, "embedding")
    _check(body, engine)
    sequences = await _sequences(body, engine)
    vectors = await until_disconnect(request, engine.embed(sequences))
    rows = _cut(vectors, body.dimensions)
    encode = _encode_base64 if body.encoding_format == "base64" else _encode_floats
    data: list[msgspec.Raw] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        data += await asyncio.to_thread(encode, rows[start : start + ROWS_AT_ONCE], start)
    answer = EmbeddingList(
        id=f"embd-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        data=data,
        usage=prompt_usage(sum(len(ids) for ids in sequences)),
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


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
    """Return the token ids of every input. Raises InvalidRequestError for empty or mixed input."""
    texts, sequences = text_or_tokens(
        body.input, "input", max_items=MAX_INPUTS, context_length=engine.context_length
    )
    count = len(texts) + len(sequences)
    if not count or not all(texts) or not all(sequences):
        raise InvalidRequestError("input must not be empty, nor hold an empty item.", param="input")
    if texts:
        _check_lengths(texts, engine.context_length)
        sequences = await engine.tokenize(texts)
    keep = body.truncate_prompt_tokens
    if keep is not None:
        limit = engine.context_length if keep == -1 else keep
        sequences = [ids[-limit:] for ids in sequences]
    return sequences


def _cut(vectors: np.ndarray, dimensions: int | None) -> np.ndarray:
    """Keep the first ``dimensions`` values of each row and bring it back to length 1."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def _check_lengths(texts: list[str], context_length: int) -> None:
    longest = max(map(len, texts))
    if longest <= context_length * CHARACTERS_PER_TOKEN and sum(map(len, texts)) <= MAX_CHARACTERS:
        return
    raise InvalidRequestError(
        f"This model's maximum context length is {context_length} tokens. However, your input holds far more text "
        f"({longest} characters in one item). Please reduce the length of the input.",
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
