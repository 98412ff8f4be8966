"""POST /v1/rerank, and the ranking behind every form of it (``rerank_families`` has the others)."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.disconnect import until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.field_errors import FieldError, UnprocessableError, wrong_field
from appliance.api.model_call import ANY_MODEL, RERANKING, begin
from appliance.api.openai.forwarding.scores import forwarded_scores
from appliance.api.openai.usage import Meter, PromptUsage
from appliance.api.validation import MAX_ERRORS, list_length_error, shown_input, text_length_error
from appliance.engines.encoding.reranking import RerankEngine
from appliance.gateway.call import ModelCall
from appliance.gateway.catalog import Catalog
from appliance.gateway.routing.records import Provider

MAX_CHARACTERS = 122_880
MAX_DOCUMENTS = 2048
# What Cohere counts as one search.
DOCUMENTS_PER_SEARCH = 100


class TextDocument(msgspec.Struct):
    """A document as an object."""

    text: str


Document = str | TextDocument


class RerankOptions(msgspec.Struct, kw_only=True):
    """What every form of the body has. The last four fields are accepted and ignored."""

    query: str
    return_documents: bool | None = None
    model: str | None = None
    top_n: Annotated[int, msgspec.Meta(gt=0)] | None = None
    raw_scores: bool | None = None
    rank_fields: Any = None
    max_tokens_per_doc: Any = None
    max_chunks_per_doc: Any = None
    truncate: Any = None


class RerankRequest(RerankOptions, kw_only=True):
    """The body; §16 of the contract."""

    documents: list[Document]


class GatewayRerankRequest(msgspec.Struct, kw_only=True):
    """The body on OpenGateLLM's mount; ``prompt`` is an older name of ``query``."""

    query: str | None = None
    prompt: str | None = None
    documents: list[str]
    model: str
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None


class RerankResult(msgspec.Struct, kw_only=True):
    """One document's relevance, with its place in the request."""

    relevance_score: float
    index: int
    document: str | dict[str, str] | None = None


class Reranking(msgspec.Struct, kw_only=True):
    """The answer, best first. ``meta`` is there for documents given as objects, as Cohere's clients do."""

    object: str = "rerank"
    id: str
    created: int
    model: str
    results: list[RerankResult]
    usage: PromptUsage
    meta: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Ranked(NamedTuple):
    """One document: its place in the request, its score, and its text as it was scored."""

    place: int
    score: float
    text: str


class Ranking(NamedTuple):
    """The documents that were asked for, best first, by ``model``."""

    model: str
    documents: list[Ranked]
    prompt_tokens: int


@post(
    "/rerank",
    status_code=200,
    operation_id="rerank",
    tags=["Rerank"],
    always_detail=True,
    unprocessable=True,
    access="key",
)
async def rerank(request: Request[Any, Any, State]) -> Response[bytes]:
    """Score documents against a query with a cross-encoder and sort them, best first."""
    if dialect_of(request).plain_encoding:
        return await _gateway_rerank(request)
    call, body = await begin(request, RerankRequest, RERANKING)
    answer = await reranking(request, call, body, body.documents)
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _gateway_rerank(request: Request[Any, Any, State]) -> Response[bytes]:
    """Answer as OpenGateLLM does: a shorter result, also for no documents at all."""
    call, body = await begin(request, GatewayRerankRequest, RERANKING, trimmed=True, check=_gateway_query)
    options = RerankOptions(query=_gateway_query(body), top_n=body.top_n)
    ranked = (
        (await rank(request, call, options, body.documents, "documents")).documents if body.documents else []
    )
    answer = {
        "object": "list",
        "id": f"rerank-{uuid.uuid4().hex}",
        "results": [{"relevance_score": score, "index": place} for place, score, _ in ranked],
        "model": body.model.strip(),
        "usage": Meter(call, dialect_of(request)).prompt_usage(),
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _gateway_query(body: GatewayRerankRequest) -> str:
    """Return the query under either of its names. Raises UnprocessableError, also for empty documents."""
    if body.query is not None and body.prompt is not None:
        raise UnprocessableError(
            [
                FieldError(
                    ["body"],
                    "Value error, query and prompt cannot be given together",
                    "value_error",
                    _came(body),
                    {"error": {}},
                )
            ]
        )
    name = "prompt" if body.query is None and body.prompt is not None else "query"
    query = body.prompt if body.query is None else body.query
    if query is None:
        raise wrong_field("query", "Field required", "missing", input=_came(body))
    blank = ((place, text) for place, text in enumerate(body.documents) if not text or text.isspace())
    errors = [] if query.strip() else [text_length_error(["body", name], query, least=1)]
    errors += [
        text_length_error(["body", "documents", place], text, least=1)
        for place, text in islice(blank, MAX_ERRORS - len(errors))
    ]
    if errors:
        raise UnprocessableError(errors)
    return query


def _came(body: GatewayRerankRequest) -> Any:
    """Return the fields that a body has, as an error may repeat them."""
    given = msgspec.to_builtins(body)
    return shown_input({name: value for name, value in given.items() if value is not None})


async def reranking(
    request: Request[Any, Any, State], call: ModelCall, options: RerankOptions, documents: list[Document]
) -> Reranking:
    """Return the answer of /v1/rerank. Raises as ``rank`` does."""
    ranking = await rank(request, call, options, documents, "documents")
    meter = Meter(call, dialect_of(request))
    answer = Reranking(
        id=f"infinity-{uuid.uuid4()}",
        created=int(time.time()),
        model=ranking.model,
        results=[
            RerankResult(
                relevance_score=score,
                index=place,
                document=_shown(documents[place], text) if options.return_documents else None,
            )
            for place, score, text in ranking.documents
        ],
        usage=meter.prompt_usage(),
    )
    if any(isinstance(document, TextDocument) for document in documents):
        answer.meta = cohere_meta("1", len(documents), ranking.prompt_tokens)
    return answer


async def rank(
    request: Request[Any, Any, State],
    call: ModelCall,
    options: RerankOptions,
    documents: Sequence[Document],
    field: str,
) -> Ranking:
    """Score the documents, which the body calls ``field``, and sort them; ties keep their order.

    Raises UnprocessableError for none, too many or too long ones, and what ``ModelCall.dispatch`` raises.
    """
    _check_count(documents, field)
    query, texts = options.query.strip(), [_text(document).strip() for document in documents]
    _check_lengths(query, texts, field)

    async def score(provider: Provider) -> list[float]:
        if provider.is_local:
            return await _scores(request, call, provider, query, texts)
        return await forwarded_scores(request, call, provider, query, texts)

    logits = np.asarray(await call.dispatch(score), dtype=np.float64)
    values = logits if options.raw_scores else 1 / (1 + np.exp(-logits))
    order = np.argsort(-values, kind="stable")[: options.top_n]
    ranked = [Ranked(int(place), float(values[place]), texts[place]) for place in order]
    named = options.model if options.model not in (None, ANY_MODEL) else call.router.name
    return Ranking(named, ranked, call.prompt_tokens)


async def _scores(
    request: Request[Any, Any, State], call: ModelCall, provider: Provider, query: str, texts: list[str]
) -> list[float]:
    """Return the logits of an engine of this box."""
    catalog: Catalog = request.app.state.catalog
    engine = catalog.engine(catalog.find(provider.model_name), RerankEngine, "rerank")
    scores = await until_disconnect(
        request, engine.score(query, texts, priority=call.priority, admit=call.reserve)
    )
    return list(scores.logits)


def cohere_meta(version: str, documents: int, prompt_tokens: int) -> dict[str, Any]:
    """Return the ``meta`` of Cohere's answers; nothing is billed here, its clients read the counts."""
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(documents / DOCUMENTS_PER_SEARCH)},
        "tokens": {"input_tokens": prompt_tokens, "output_tokens": 0},
    }


def _text(document: Document) -> str:
    return document if isinstance(document, str) else document.text


def _check_count(documents: Sequence[Document], field: str) -> None:
    if not documents:
        raise UnprocessableError([list_length_error(["body", field], documents, least=1)])
    if len(documents) > MAX_DOCUMENTS:
        raise UnprocessableError([list_length_error(["body", field], documents, most=MAX_DOCUMENTS)])


def _check_lengths(query: str, texts: list[str], field: str) -> None:
    errors: list[FieldError] = []
    if len(query) > MAX_CHARACTERS:
        errors.append(text_length_error(["body", "query"], query, most=MAX_CHARACTERS))
    errors.extend(
        text_length_error(["body", field, index], text, most=MAX_CHARACTERS)
        for index, text in enumerate(texts)
        if len(text) > MAX_CHARACTERS
    )
    if errors:
        raise UnprocessableError(errors)


def _shown(document: Document, text: str) -> str | dict[str, str]:
    return text if isinstance(document, str) else {"text": text}
