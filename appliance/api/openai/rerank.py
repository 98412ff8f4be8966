"""POST /v1/rerank, and the ranking behind every form of it (``rerank_families`` has the others)."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

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
# What Cohere counts as one search.
DOCUMENTS_PER_SEARCH = 100

B = TypeVar("B")

_STEP = re.compile(r"[^.\[\]]+")


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


@post("/rerank", status_code=200, operation_id="rerank", tags=["Rerank"], always_detail=True)
async def rerank(request: Request[Any, Any, State]) -> Response[bytes]:
    """Score documents against a query with a cross-encoder and sort them, best first."""
    body = await read_fields(request, RerankRequest)
    answer = await reranking(request, body, body.documents)
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def reranking(
    request: Request[Any, Any, State], options: RerankOptions, documents: list[Document]
) -> Reranking:
    """Return the answer of /v1/rerank. Raises as ``rank`` does."""
    ranking = await rank(request, options, documents, "documents")
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
        usage=prompt_usage(ranking.prompt_tokens),
    )
    if any(isinstance(document, TextDocument) for document in documents):
        answer.meta = cohere_meta("1", len(documents), ranking.prompt_tokens)
    return answer


async def rank(
    request: Request[Any, Any, State], options: RerankOptions, documents: Sequence[Document], field: str
) -> Ranking:
    """Score the documents, which the body calls ``field``, and sort them; ties keep their order.

    Raises UnprocessableError for none, too many or too long ones, ModelNotFoundError, WrongTaskError.
    """
    catalog: Catalog = request.app.state.catalog
    named = options.model not in (None, ANY_MODEL)
    model = catalog.find(str(options.model)) if named else catalog.default("rerank")
    engine = catalog.engine(model, RerankEngine, "rerank")
    _check_count(len(documents), field)
    query, texts = options.query.strip(), [_text(document).strip() for document in documents]
    _check_lengths(query, texts, field)
    scores = await until_disconnect(request, engine.score(query, texts))
    logits = np.asarray(scores.logits, dtype=np.float64)
    values = logits if options.raw_scores else 1 / (1 + np.exp(-logits))
    order = np.argsort(-values, kind="stable")[: options.top_n]
    ranked = [Ranked(int(place), float(values[place]), texts[place]) for place in order]
    return Ranking(model.manifest.name, ranked, scores.prompt_tokens)


async def read_fields(request: Request[Any, Any, State], type_: type[B]) -> B:
    """Read the body; clients of these routes read FastAPI's 422 list for a wrong field."""
    try:
        return await read_json(request, type_)
    except InvalidRequestError as error:
        if not isinstance(error.__context__, msgspec.ValidationError):
            raise
        message, path = describe(error.__context__)
        location = ["body", *_steps(path or "")]
        wrong = FieldError(location, message, "value_error")
        if "missing required field" in message:
            wrong = FieldError(location, "Field required", "missing")
        raise UnprocessableError([wrong]) from None


def _steps(path: str) -> list[str | int]:
    """Split a field's path, such as "documents[3].text", as FastAPI does."""
    return [int(step) if step.isdecimal() else step for step in _STEP.findall(path)]


def cohere_meta(version: str, documents: int, prompt_tokens: int) -> dict[str, Any]:
    """Return the ``meta`` of Cohere's answers; nothing is billed here, its clients read the counts."""
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(documents / DOCUMENTS_PER_SEARCH)},
        "tokens": {"input_tokens": prompt_tokens, "output_tokens": 0},
    }


def _text(document: Document) -> str:
    return document if isinstance(document, str) else document.text


def _check_count(documents: int, field: str) -> None:
    if not documents:
        text = "List should have at least 1 item after validation, not 0"
        raise UnprocessableError([FieldError(["body", field], text, "too_short")])
    if documents > MAX_DOCUMENTS:
        text = f"List should have at most {MAX_DOCUMENTS} items after validation, not {documents}"
        raise UnprocessableError([FieldError(["body", field], text, "too_long")])


def _check_lengths(query: str, texts: list[str], field: str) -> None:
    errors: list[FieldError] = []
    if len(query) > MAX_CHARACTERS:
        errors.append(_too_long(["body", "query"]))
    errors.extend(
        _too_long(["body", field, index]) for index, text in enumerate(texts) if len(text) > MAX_CHARACTERS
    )
    if errors:
        raise UnprocessableError(errors)


def _too_long(location: list[str | int]) -> FieldError:
    return FieldError(location, f"String should have at most {MAX_CHARACTERS} characters", "string_too_long")


def _shown(document: Document, text: str) -> str | dict[str, str]:
    return text if isinstance(document, str) else {"text": text}
