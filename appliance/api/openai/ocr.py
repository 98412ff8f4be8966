"""POST /v1/ocr: reading documents, by providers on other machines."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from appliance.api.disconnect import until_disconnect
from appliance.api.errors import dialect_of
from appliance.api.field_errors import FieldError, UnprocessableError, wrong_value
from appliance.api.model_call import OCR, begin
from appliance.api.openai.forwarding.answer import account, own_id
from appliance.api.openai.forwarding.body import UNKNOWN_CONTEXT, received_fields, with_defaults
from appliance.api.openai.forwarding.counts import token_count
from appliance.api.openai.forwarding.target import client_of, headers_for, upstream_of
from appliance.api.openai.ocr_images import limited_images
from appliance.api.openai.usage import Meter
from appliance.api.validation import shown_input
from appliance.gateway.call import ModelCall
from appliance.gateway.errors import NoModelError, ProviderBusyError
from appliance.gateway.routing.records import Provider
from appliance.gateway.upstream.client import Fields, Upstream, fetch_fields
from appliance.gateway.upstream.counts import counts_of
from appliance.gateway.upstream.failures import unavailable
from appliance.gateway.upstream.families import adapted, path, raw

# The most pages that one request may name.
MAX_PAGES = 10_000
LAST_PAGE = 1_000_000


class ImageURL(msgspec.Struct):
    """Where an image is, as an object."""

    url: str
    detail: str | None = None


class DocumentURLChunk(msgspec.Struct, tag="document_url", tag_field="type"):
    """A document by its address, or as a data URL."""

    document_url: str
    document_name: str | None = None


class ImageURLChunk(msgspec.Struct, tag="image_url", tag_field="type"):
    """An image by its address, or as a data URL."""

    image_url: str | ImageURL


class JsonSchema(msgspec.Struct):
    """What annotations are held to; Mistral's clients write ``schema`` for ``schema_definition``."""

    name: str
    schema_definition: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    strict: bool = False
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    """The form of annotations."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class OcrRequest(msgspec.Struct, kw_only=True):
    """The body; §10.3 of OpenGateLLM's contract. ``pages`` count from 0: a number, "2-5", or a list of both."""

    document: DocumentURLChunk | ImageURLChunk
    model: str | None = None
    pages: int | str | list[int | str] | None = None
    include_image_base64: bool | None = None
    image_limit: int | None = None
    image_min_size: int | None = None
    bbox_annotation_format: ResponseFormat | None = None
    document_annotation_format: ResponseFormat | None = None


class _Page(msgspec.Struct):
    markdown: str | None = None


DEFAULTS: dict[str, Any] = dict.fromkeys(
    (
        *("pages", "include_image_base64", "image_limit", "image_min_size"),
        *("bbox_annotation_format", "document_annotation_format"),
    )
)


@post("/ocr", status_code=200, operation_id="ocr", tags=["OCR"], access="key")
async def ocr(request: Request[Any, Any, State]) -> Response[bytes]:
    """Read a document or an image: the text of each page as Markdown, and its images."""
    try:
        call, body = await begin(request, OcrRequest, OCR, check=_check)
    except NoModelError as error:
        error.status = 404  # OpenGateLLM alone has this route, and it looks for a model of no name
        raise
    pages = page_numbers(body.pages)

    async def answer(provider: Provider) -> Response[bytes]:
        if provider.is_local:
            raise ProviderBusyError("This box has no engine for documents.", retry_after=60)
        return await _forwarded(request, body, pages, call, provider)

    return await call.dispatch(answer)


def _check(body: OcrRequest) -> None:
    """Check that every JSON schema of annotations is one, and the pages. Raises UnprocessableError (422)."""
    for name in ("bbox_annotation_format", "document_annotation_format"):
        annotation: ResponseFormat | None = getattr(body, name)
        held = None if annotation is None else annotation.json_schema
        if held is not None and held.schema_definition is None and held.schema is None:
            raise UnprocessableError(
                [FieldError(["body", name, "json_schema", "schema_definition"], "Field required", "missing")]
            )
    page_numbers(body.pages)


def page_numbers(pages: int | str | list[int | str] | None) -> list[int] | None:
    """Return the pages that are asked for, in order. Raises UnprocessableError (422) for what names none."""
    if pages is None:
        return None
    numbers: list[int] = []
    for item in pages if isinstance(pages, list) else [pages]:
        first, last = _range(item)
        if last - first >= MAX_PAGES - len(numbers):
            raise wrong_value(
                "pages", f"At most {MAX_PAGES} pages can be asked for at once.", shown_input(item)
            )
        numbers += range(first, last + 1)
    return list(dict.fromkeys(numbers))


def _range(item: int | str) -> tuple[int, int]:
    """Return the first and the last page of a number or of "a-b"."""
    ends = [str(item)] if isinstance(item, int) else item.split("-")
    words = [end.strip() for end in ends]
    if len(words) > 2 or not all(
        word.isascii() and word.isdecimal() and len(word) <= len(str(LAST_PAGE)) for word in words
    ):
        raise wrong_value("pages", 'A page is a number from 0, or a range such as "2-5".', shown_input(item))
    first, last = int(words[0]), int(words[-1])
    if last < first or last > LAST_PAGE:
        raise wrong_value(
            "pages", f"A range of pages ends after its beginning, at {LAST_PAGE} at most.", shown_input(item)
        )
    return first, last


async def _forwarded(
    request: Request[Any, Any, State],
    body: OcrRequest,
    pages: list[int] | None,
    call: ModelCall,
    provider: Provider,
) -> Response[bytes]:
    upstream = upstream_of(request, provider)
    where = path(upstream, "ocr")
    fields = await received_fields(request)
    if dialect_of(request).forward_defaults:
        fields = with_defaults(fields, DEFAULTS)
    if pages is not None:
        fields["pages"] = raw(pages)
    # No server can be told how much it may write: what hardly a page exceeds is held for each.
    call.reserve(0, UNKNOWN_CONTEXT * len(pages or [0]), guess="mixed")
    answer = await until_disconnect(
        request,
        fetch_fields(
            client_of(request),
            upstream,
            where,
            msgspec.json.encode(adapted(upstream, "ocr", fields)),
            headers_for(request, upstream),
        ),
    )
    said = counts_of(answer)
    account(call, said, await token_count(request, _texts(upstream, answer)))
    try:
        pages_shown = limited_images(answer["pages"], body.image_limit, body.image_min_size)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unavailable(upstream.name, f"answers with images that are none: {error}") from error
    answer |= {
        "pages": pages_shown,
        "id": own_id(answer),
        "model": raw(body.model or call.router.name),
        "usage": raw(Meter(call, dialect_of(request)).usage()),
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _texts(upstream: Upstream, answer: Fields) -> list[str]:
    """Return the pages' texts. Raises UpstreamUnavailableError when there are no pages."""
    try:
        pages = msgspec.json.decode(answer.get("pages", b""), type=list[_Page])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unavailable(upstream.name, f"answers without pages: {error}") from error
    return [page.markdown or "" for page in pages]
