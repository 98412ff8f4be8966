"""Reranking in the forms of other families: TEI's at the root, Cohere's under its own paths."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.field_errors import FieldError, UnprocessableError
from appliance.api.model_call import RERANKING, begin
from appliance.api.openai.encoding.rerank import (
    Document,
    Ranking,
    RerankOptions,
    RerankRequest,
    cohere_meta,
    rank,
    reranking,
)


class RootRerankRequest(RerankOptions, kw_only=True):
    """The body: ``texts`` as TEI's clients send them, or ``documents`` as on /v1/rerank."""

    texts: list[str] | None = None
    return_text: bool | None = None
    documents: list[Document] | None = None


class ScoredText(msgspec.Struct, kw_only=True):
    """One result as TEI writes it; ``text`` only when asked for."""

    index: int
    score: float
    text: str | msgspec.UnsetType = msgspec.UNSET


class CohereDocument(msgspec.Struct):
    """A document in Cohere's answer."""

    text: str


class CohereResult(msgspec.Struct, kw_only=True):
    """One result as Cohere writes it; ``document`` only when asked for."""

    index: int
    relevance_score: float
    document: CohereDocument | msgspec.UnsetType = msgspec.UNSET


class CohereReranking(msgspec.Struct, kw_only=True):
    """Cohere's answer, best first."""

    id: str
    results: list[CohereResult]
    meta: dict[str, Any]


def _operation_id(_handler: Any, _method: Any, path: list[Any]) -> str:
    """Name one of Cohere's paths: "cohereV1Rerank"."""
    return str(path[0]) + "".join(str(part).title() for part in path[1:])


@post(
    "/rerank",
    status_code=200,
    operation_id="rerankTexts",
    tags=["Rerank"],
    always_detail=True,
    unprocessable=True,
    access="key",
)
async def rerank_texts(request: Request[Any, Any, State]) -> Response[bytes]:
    """Sort ``texts`` by relevance, answered as TEI does; ``documents`` are answered as on /v1/rerank."""
    call, body = await begin(request, RootRerankRequest, RERANKING)
    answer: Any
    if body.texts is not None and body.documents is not None:
        raise UnprocessableError(
            [FieldError(["body", "texts"], "Send `texts` or `documents`, not both", "value_error")]
        )
    if body.documents is not None:
        answer = await reranking(request, call, body, body.documents)
    elif body.texts is not None:
        answer = _scored_texts(
            await rank(request, call, body, body.texts, "texts"), body.texts, body.return_text
        )
    else:
        raise UnprocessableError([FieldError(["body", "texts"], "Field required", "missing")])
    return Response(msgspec.json.encode(answer), media_type="application/json")


@post(
    ["/v2/rerank", "/cohere/v1/rerank", "/cohere/v2/rerank"],
    status_code=200,
    operation_id=_operation_id,
    tags=["Rerank"],
    always_detail=True,
    unprocessable=True,
    access="key",
)
async def cohere_rerank(request: Request[Any, Any, State]) -> Response[bytes]:
    """Sort documents by relevance, answered as Cohere does (base URL of its clients: /cohere)."""
    call, body = await begin(request, RerankRequest, RERANKING)
    ranking = await rank(request, call, body, body.documents, "documents")
    results = [CohereResult(index=place, relevance_score=score) for place, score, _ in ranking.documents]
    if body.return_documents:
        for result, document in zip(results, ranking.documents, strict=True):
            result.document = CohereDocument(document.text)
    version = "1" if request.url.path.startswith("/cohere/v1/") else "2"
    answer = CohereReranking(
        id=str(uuid.uuid4()),
        results=results,
        meta=cohere_meta(version, len(body.documents), ranking.prompt_tokens),
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _scored_texts(ranking: Ranking, texts: list[str], return_text: bool | None) -> list[ScoredText]:
    """Return TEI's list; a text comes back as it was sent."""
    return [
        ScoredText(index=place, score=score, text=texts[place] if return_text else msgspec.UNSET)
        for place, score, _ in ranking.documents
    ]
