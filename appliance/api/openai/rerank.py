"""POST /v1/rerank."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

import msgspec
import numpy as np
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.body import describe, read_json
from appliance.api.disconnect import until_disconnect
from appliance.api.errors import FieldError, UnprocessableError
from appliance.api.openai.usage import PromptUsage, prompt_usage
from appliance.engines.encoding.reranking import RerankEngine
from appliance.errors import InvalidRequestError
from appliance.gateway.catalog import Catalog

ANY_MODEL = "default/not-specified"
MAX_CHARACTERS = 122_880
MAX_DOCUMENTS = 2048


class TextDocument(msgspec.Struct):
    """A document as an object."""

    text: str


class RerankRequest(msgspec.Struct, kw_only=True):
    """The body; §16 of the contract."""

    query: str
    documents: list[str | TextDocument]
    return_documents: bool | None = None
    model: str | None = None
    top_n: Annotated[int, msgspec.Meta(gt=0)] | None = None
    raw_scores: bool | None = None


class RerankResult(msgspec.Struct, kw_only=True):
    """One document's relevance, with its place in the request."""

    relevance_score: float
    index: int
    document: str | dict[str, str] | None = None


class Reranking(msgspec.Struct, kw_only=True):
    """The answer, best first."""

    object: str = "rerank"
    id: str
    created: int
    model: str
    results: list[RerankResult]
    usage: PromptUsage


@post("/rerank", status_code=200, operation_id="rerank", tags=["Rerank"], always_detail=True)
async def rerank(request: Request[Any, Any, State]) -> Response[bytes]:
    """Score documents against a query with a cross-encoder and sort them, best first."""
    body = await _read(request)
    catalog: Catalog = request.app.state.catalog
    named = body.model not in (None, ANY_MODEL)
    model = catalog.find(str(body.model)) if named else catalog.default("rerank")
    engine = catalog.engine(model, RerankEngine, "rerank")
    _check_count(len(body.documents))
    query = body.query.strip()
    texts = [(item if isinstance(item, str) else item.text).strip() for item in body.documents]
    _check(query, texts)
    scores = await until_disconnect(request, engine.score(query, texts))
    logits = np.asarray(scores.logits, dtype=np.float64)
    values = logits if body.raw_scores else 1 / (1 + np.exp(-logits))
    # A stable sort: ties keep the order of the request.
    order = np.argsort(-values, kind="stable")[: body.top_n]
    answer = Reranking(
        id=f"infinity-{uuid.uuid4()}",
        created=int(time.time()),
        model=model.manifest.name,
        results=[
            RerankResult(
                relevance_score=float(values[index]),
                index=int(index),
                document=_shown(body.documents[index], texts[index]) if body.return_documents else None,
            )
            for index in order
        ],
        usage=prompt_usage(scores.prompt_tokens),
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _read(request: Request[Any, Any, State]) -> RerankRequest:
    """Read the body; clients of this route read FastAPI's 422 list for a wrong field."""
    try:
        return await read_json(request, RerankRequest)
    except InvalidRequestError as error:
        if not isinstance(error.__context__, msgspec.ValidationError):
            raise
        message, path = describe(error.__context__)
        location: list[str | int] = ["body", *path.replace("[...]", "").split(".")] if path else ["body"]
        raise UnprocessableError([FieldError(location, message, "value_error")]) from None


def _check_count(documents: int) -> None:
    if not documents:
        text = "List should have at least 1 item after validation, not 0"
        raise UnprocessableError([FieldError(["body", "documents"], text, "too_short")])
    if documents > MAX_DOCUMENTS:
        text = f"List should have at most {MAX_DOCUMENTS} items after validation, not {documents}"
        raise UnprocessableError([FieldError(["body", "documents"], text, "too_long")])


def _check(query: str, texts: list[str]) -> None:
    errors: list[FieldError] = []
    if len(query) > MAX_CHARACTERS:
        errors.append(_too_long(["body", "query"]))
    errors.extend(
        _too_long(["body", "documents", index])
        for index, text in enumerate(texts)
        if len(text) > MAX_CHARACTERS
    )
    if errors:
        raise UnprocessableError(errors)


def _too_long(location: list[str | int]) -> FieldError:
    return FieldError(location, f"String should have at most {MAX_CHARACTERS} characters", "string_too_long")


def _shown(document: str | TextDocument, text: str) -> str | dict[str, str]:
    return text if isinstance(document, str) else {"text": text}
