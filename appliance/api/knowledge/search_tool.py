"""What a chat may say of a search in collections: the tool ``search``, and the older fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

import msgspec
from litestar import Request

from appliance.api.field_errors import FieldError, InvalidFieldError, UnprocessableError
from appliance.api.knowledge.not_enabled import NotEnabledError
from appliance.api.leniency import lenient
from appliance.api.paging import query_text
from appliance.api.validation import value_errors

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Ids = Annotated[list[Annotated[int, msgspec.Meta(gt=0)]], msgspec.Meta(max_length=100)]


class ComparisonFilter(msgspec.Struct):
    """Chunks whose value of ``key`` equals, begins with, ends with or contains ``value``."""

    key: Key
    type: Literal["eq", "sw", "ew", "co"]
    value: str | int | float | bool


class CompoundFilter(msgspec.Struct):
    """Several comparisons, of which all or one must hold."""

    filters: Annotated[list[ComparisonFilter], msgspec.Meta(min_length=2, max_length=4)]
    operator: Literal["and", "or"]


class SearchArgs(msgspec.Struct, kw_only=True):
    """Where and how to search; §9.2 of OpenGateLLM's contract."""

    collection_ids: Ids = []
    collections: Ids = []
    document_ids: Ids = []
    metadata_filters: dict[str, Any] | None = None
    limit: Annotated[int, msgspec.Meta(gt=0, le=100)] = 10
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    method: Literal["semantic", "lexical", "hybrid"] = "semantic"
    rff_k: Annotated[int, msgspec.Meta(ge=0, le=16384)] = 60
    score_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class SearchFields(Protocol):
    """The fields of a chat request that are read here."""

    search: bool | None
    search_args: SearchArgs | None
    tools: list[dict[str, Any]] | None


def check_required(request: Request[Any, Any, Any]) -> None:
    """Check the query parameter ``required``: whether there must be a vector store, of which there is none.

    Raises UnprocessableError, NotEnabledError (403).
    """
    text = query_text(request, "required")
    errors = [] if text is None else value_errors(text, bool, ["query", "required"])
    if errors:
        raise UnprocessableError(errors)
    if text is not None and lenient(text, bool) is True:
        raise NotEnabledError


def refuse_search(body: SearchFields) -> None:
    """Refuse a chat that wants to search: there is nothing to search in.

    Raises InvalidFieldError for wrong arguments, NotEnabledError (403) otherwise.
    """
    if body.search and body.search_args is None:
        message = "search_args is required when search is True"
        wrong = FieldError(["body"], f"Value error, {message}", "value_error", ctx={"error": {}})
        raise InvalidFieldError(message, "search_args", [wrong])
    wanted = bool(body.search)
    if body.search and body.search_args is not None:
        _check_filters(body.search_args.metadata_filters, ["body", "search_args"])
    for place, tool in enumerate(body.tools or ()):
        if tool.get("type") == "search":
            wanted = True
            _check_tool(tool, place)
    if wanted:
        raise NotEnabledError("Search tool is not enabled because Elasticsearch is not configured.")


def _check_tool(tool: dict[str, Any], place: int) -> None:
    location: list[str | int] = ["body", "tools", place]
    try:
        args = msgspec.convert(tool, SearchArgs, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidFieldError(
            f"tools[{place}]: {error}", f"tools[{place}]", value_errors(tool, SearchArgs, location)
        ) from None
    _check_filters(args.metadata_filters, location)


def _check_filters(filters: dict[str, Any] | None, location: list[str | int]) -> None:
    if filters is None:
        return
    kind = CompoundFilter if "filters" in filters else ComparisonFilter
    try:
        msgspec.convert(filters, kind, strict=False)
    except msgspec.ValidationError as error:
        at = [*location, "metadata_filters"]
        raise InvalidFieldError(
            f"metadata_filters: {error}", "metadata_filters", value_errors(filters, kind, at)
        ) from None
