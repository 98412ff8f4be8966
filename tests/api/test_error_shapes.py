"""Errors as clients read them: for each mount and situation the exact status, body and headers.

The table below is the specification; ``both`` and ``only`` build the two shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import pytest
from litestar import Litestar, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.testing import TestClient

from appliance.api.dialect import COMPACTIFAI, COMPRESSA, OPENGATELLM, UNION, Dialect
from appliance.api.errors import error_response, http_error_response, internal_error_response
from appliance.api.field_errors import InvalidFieldError
from appliance.api.monitoring.metrics import Metrics
from appliance.errors import ApplianceError, OverloadedError
from appliance.gateway.errors import (
    ForbiddenModelError,
    InsufficientBudgetError,
    LimitExceededError,
    ModelNotFoundError,
    UpstreamError,
    WrongTaskError,
)
from tests.service import KEY, PLAIN, Service

UNION_LIKE = ("/v1", "/compressa/v1", "/compactifai/v1")
OGL = "/opengatellm/v1"
LIVE = {"Authorization": f"Bearer {KEY}"}
NO_KEY_TEXT = "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'."


def both(
    status: int,
    message: str,
    kind: str,
    flat: str,
    *,
    param: str | None = None,
    code: str | None = None,
    detail: Any = None,
) -> dict[str, Any]:
    """Return the union's body: OpenAI's object and its flat copy, and ``detail`` where there is one."""
    body = {
        "error": {"message": message, "type": kind, "param": param, "code": code},
        "object": "error",
        "message": message,
        "type": flat,
        "param": param,
        "code": status,
    }
    return body if detail is None else body | {"detail": detail}


def only(detail: Any) -> dict[str, Any]:
    """Return the body of OpenGateLLM's mount."""
    return {"detail": detail}


def item(location: list[str | int], message: str, kind: str, **rest: Any) -> dict[str, Any]:
    """Return an entry of a list of wrong fields; ``rest`` is its input and ctx."""
    return {"loc": location, "msg": message, "type": kind, **rest}


class Case(NamedTuple):
    """A request to a mount and what is answered."""

    situation: str
    mount: str
    request: tuple[str, str, dict[str, Any]]
    status: int
    body: dict[str, Any] | None
    headers: dict[str, str] | None = None


def refused_key(mount: str, text: str) -> dict[str, Any]:
    return both(401, text, "authentication_error", "AuthenticationError", code="invalid_api_key", detail=text)


def cases() -> list[Case]:
    """Return the table of what needs no model."""
    listing: tuple[str, str, dict[str, Any]] = ("GET", "/models", {})
    bearer = {"www-authenticate": "Bearer"}
    table: list[Case] = []
    for mount in UNION_LIKE:
        missing, wrong = refused_key(mount, NO_KEY_TEXT), refused_key(mount, "Invalid API key.")
        table += [
            Case("no key", mount, listing, 401, missing, bearer),
            Case("bad key", mount, _with(listing, "Bearer nope"), 401, wrong, bearer),
            Case("bare bad key", mount, _with(listing, "nope"), 401, wrong, bearer),
            Case("other scheme", mount, _with(listing, "Basic bm9wZQ=="), 401, wrong, bearer),
            Case("lower-case scheme", mount, _with(listing, f"bearer {KEY}"), 200, None),
            Case("slash at the end", mount, ("GET", "/models/", {"headers": LIVE}), 200, None),
            Case(
                "unknown path",
                mount,
                ("GET", "/nowhere", {"headers": LIVE}),
                404,
                both(404, "Not Found", "not_found_error", "NotFoundError", detail="Not Found"),
            ),
            Case(
                "wrong method",
                mount,
                ("DELETE", "/models", {"headers": LIVE}),
                405,
                both(405, "Method Not Allowed", "invalid_request_error", "MethodNotAllowed"),
            ),
            Case(
                "unknown model",
                mount,
                ("GET", "/models/nope", {"headers": LIVE}),
                404,
                both(
                    404,
                    "The model `nope` does not exist.",
                    "not_found_error",
                    "NotFoundError",
                    param="model",
                    code="model_not_found",
                    detail="The model `nope` does not exist.",
                ),
            ),
            Case(
                "no JSON",
                mount,
                ("POST", "/chat/completions", {"headers": LIVE, "content": b"{]"}),
                400,
                both(
                    400,
                    "The request body is not valid JSON: JSON is malformed: object keys must be strings (byte 1)",
                    "invalid_request_error",
                    "BadRequestError",
                ),
            ),
        ]
    table += [
        Case("no key", OGL, listing, 401, only("Not authenticated"), bearer),
        Case("empty key", OGL, _with(listing, "Bearer"), 401, only("Not authenticated"), bearer),
        Case("other scheme", OGL, _with(listing, "Basic bm9wZQ=="), 401, only("Not authenticated"), bearer),
        Case("bad key", OGL, _with(listing, "Bearer nope"), 403, only("Invalid API key.")),
        Case("bare bad key", OGL, _with(listing, "nope"), 403, only("Invalid API key.")),
        Case("bare key", OGL, _with(listing, KEY), 200, None),
        Case("prefixed key", OGL, _with(listing, f"Bearer cmp_{KEY}"), 200, None),
        Case(
            "lower-case scheme",
            OGL,
            _with(listing, f"bearer {KEY}"),
            403,
            only("Invalid authentication scheme."),
        ),
        Case(
            "slash at the end", OGL, ("GET", "/models/?a=1", {}), 307, None, {"location": f"{OGL}/models?a=1"}
        ),
        Case("slash, wrong method", OGL, ("PUT", "/models/", {}), 307, None, {"location": f"{OGL}/models"}),
        Case("unknown path", OGL, ("GET", "/nowhere", {}), 404, only("Not Found")),
        Case("unknown path with a slash", OGL, ("GET", "/nowhere/", {}), 404, only("Not Found")),
        Case("wrong method", OGL, ("DELETE", "/models", {}), 405, only("Method Not Allowed")),
        Case("unknown model", OGL, ("GET", "/models/a/b", {"headers": LIVE}), 404, only("Model not found.")),
        Case(
            "unknown model in a body",
            OGL,
            ("POST", "/chat/completions", {"headers": LIVE, "json": {"model": "nope"}}),
            404,
            only("Model not found."),
        ),
        Case(
            "no JSON",
            OGL,
            ("POST", "/chat/completions", {"headers": LIVE, "content": b"{]"}),
            422,
            only(
                [
                    item(
                        ["body", 1],
                        "JSON decode error",
                        "json_invalid",
                        input={},
                        ctx={"error": "JSON is malformed: object keys must be strings (byte 1)"},
                    )
                ]
            ),
        ),
        Case(
            "no object",
            OGL,
            ("POST", "/admin/organizations", {"headers": LIVE, "content": b"[]"}),
            422,
            only(
                [
                    item(
                        ["body"],
                        "Input should be a valid dictionary or object to extract fields from",
                        "model_attributes_type",
                        input=[],
                    )
                ]
            ),
        ),
        Case(
            "missing fields",
            OGL,
            ("POST", "/embeddings", {"headers": LIVE, "json": {"input": None}}),
            422,
            only(
                [
                    item(["body", "model"], "Field required", "missing", input={"input": None}),
                    item(
                        ["body", "input", "str"], "Input should be a valid string", "string_type", input=None
                    ),
                    {
                        "loc": ["body", "input", "list[any]"],
                        "msg": "Input should be a valid list",
                        "type": "list_type",
                        "input": None,
                    },
                ]
            ),
        ),
        Case(
            "page out of bounds",
            OGL,
            ("GET", "/admin/organizations?limit=101", {"headers": LIVE}),
            422,
            only(
                [
                    item(
                        ["query", "limit"],
                        "Input should be less than or equal to 100",
                        "less_than_equal",
                        input="101",
                        ctx={"le": 100},
                    )
                ]
            ),
        ),
        Case(
            "not there",
            OGL,
            ("GET", "/admin/organizations/999999", {"headers": LIVE}),
            404,
            only("Organization not found."),
        ),
        Case(
            "missing fields of a route that several have",
            "/v1",
            ("POST", "/rerank", {"headers": LIVE, "json": {"documents": []}}),
            422,
            both(
                422,
                "Field required",
                "invalid_request_error",
                "UnprocessableEntity",
                param="query",
                detail=[item(["body", "query"], "Field required", "missing")],
            ),
        ),
        # What only OpenGateLLM has is answered in its ways in the union too, in the union's shape.
        Case(
            "not there",
            "/v1",
            ("GET", "/admin/organizations/999999", {"headers": LIVE}),
            404,
            both(
                404,
                "Organization not found.",
                "invalid_request_error",
                "NotFoundError",
                detail="Organization not found.",
            ),
        ),
        Case(
            "missing fields",
            "/v1",
            ("POST", "/admin/organizations", {"headers": LIVE, "json": {}}),
            422,
            both(
                422,
                "Field required",
                "invalid_request_error",
                "UnprocessableEntity",
                param="name",
                detail=[item(["body", "name"], "Field required", "missing", input={})],
            ),
        ),
    ]
    return table


def _with(request: tuple[str, str, dict[str, Any]], authorization: str) -> tuple[str, str, dict[str, Any]]:
    return request[0], request[1], {"headers": {"Authorization": authorization}}


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.mount} {case.situation}")
def test_the_answer_is_the_one_in_the_table(bare_service: Service, case: Case) -> None:
    method, path, arguments = case.request
    answer = httpx.request(
        method, bare_service.base_url + case.mount + path, **arguments, trust_env=False, verify=PLAIN
    )

    assert answer.status_code == case.status, answer.text
    if case.body is not None:
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == case.body
    assert (case.headers or {}).items() <= dict(answer.headers).items()
    assert ("www-authenticate" in answer.headers) == (case.status == 401)
    assert answer.headers["x-request-id"]


# Errors from within, which no request to a box without models brings about: raised by a handler of our own.
RAISED: list[tuple[str, Callable[[], Exception], dict[Dialect, tuple[int, str | dict[str, Any]]]]] = [
    (
        "forbidden model",
        lambda: ForbiddenModelError("m"),
        {
            OPENGATELLM: (403, only("Insufficient permissions to access the model.")),
            UNION: (
                404,
                both(
                    404,
                    "The model `m` does not exist.",
                    "invalid_request_error",
                    "NotFoundError",
                    param="model",
                    code="model_not_found",
                    detail="The model `m` does not exist.",
                ),
            ),
            COMPACTIFAI: (
                400,
                both(
                    400,
                    "Invalid request: Model 'm' not found; available: []",
                    "invalid_request_error",
                    "BadRequestError",
                    param="model",
                    code="model_not_found",
                ),
            ),
        },
    ),
    (
        "unknown model",
        lambda: ModelNotFoundError("m", ["a", "b"]),
        {
            OPENGATELLM: (404, only("Model not found.")),
            COMPACTIFAI: (
                400,
                both(
                    400,
                    "Invalid request: Model 'm' not found; available: [a, b]",
                    "invalid_request_error",
                    "BadRequestError",
                    param="model",
                    code="model_not_found",
                ),
            ),
        },
    ),
    (
        "wrong type of model",
        lambda: WrongTaskError("The model `m` does not support embeddings.", param="model"),
        {
            OPENGATELLM: (422, only("Wrong model type.")),
            UNION: (
                400,
                both(
                    400,
                    "The model `m` does not support embeddings.",
                    "invalid_request_error",
                    "BadRequestError",
                    param="model",
                ),
            ),
        },
    ),
    (
        "budget",
        InsufficientBudgetError,
        {
            OPENGATELLM: (400, only("Insufficient budget.")),
            UNION: (
                429,
                both(
                    429,
                    "Insufficient budget.",
                    "insufficient_quota",
                    "RateLimitError",
                    code="insufficient_quota",
                ),
            ),
        },
    ),
    (
        "limit",
        lambda: LimitExceededError(
            "1 requests per minute exceeded (remaining: 0).", kind="rpm", retry_after=7
        ),
        {
            OPENGATELLM: (429, only("1 requests per minute exceeded (remaining: 0).")),
            UNION: (
                429,
                both(
                    429,
                    "1 requests per minute exceeded (remaining: 0).",
                    "rate_limit_error",
                    "RateLimitError",
                    code="rate_limit_exceeded",
                ),
            ),
        },
    ),
    (
        "overload",
        lambda: OverloadedError("Come back.", retry_after=3),
        {
            OPENGATELLM: (503, only("Come back.")),
            COMPRESSA: (503, both(503, "Come back.", "server_error", "ServiceUnavailableError")),
        },
    ),
    (
        "wrong field",
        lambda: InvalidFieldError("top_p: no", "top_p"),
        {
            OPENGATELLM: (
                422,
                only([item(["body", "top_p"], "Value error, top_p: no", "value_error", ctx={"error": {}})]),
            ),
            UNION: (400, both(400, "top_p: no", "invalid_request_error", "BadRequestError", param="top_p")),
        },
    ),
    (
        "upstream's own",
        lambda: UpstreamError("It says no.", status=418),
        {
            OPENGATELLM: (418, only("It says no.")),
            UNION: (418, both(418, "It says no.", "invalid_request_error", "APIError")),
        },
    ),
    (
        "failure",
        lambda: ZeroDivisionError("secret"),
        {
            OPENGATELLM: (500, "Internal Server Error"),
            UNION: (
                500,
                both(
                    500,
                    "The server had an error while processing your request.",
                    "server_error",
                    "InternalServerError",
                ),
            ),
        },
    ),
]


@pytest.mark.parametrize(
    ("error", "dialect", "status", "body"),
    [
        pytest.param(error, dialect, status, body, id=f"{dialect.name} {situation}")
        for situation, error, answers in RAISED
        for dialect, (status, body) in answers.items()
    ],
)
def test_an_error_from_within_is_answered_in_the_words_of_the_mount(
    error: Callable[[], Exception], dialect: Dialect, status: int, body: str | dict[str, Any]
) -> None:
    answer = raised(error, dialect)

    assert answer.status_code == status
    if isinstance(body, str):
        assert answer.text == body
        assert answer.headers["content-type"].startswith("text/plain")
    else:
        assert answer.json() == body
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_a_newer_route_of_opengatellm_fails_in_json() -> None:
    answer = raised(lambda: ZeroDivisionError("secret"), OPENGATELLM, newer=True)

    assert (answer.status_code, answer.json()) == (500, only("An unexpected error occurred"))


def raised(error: Callable[[], Exception], dialect: Dialect, **options: Any) -> httpx.Response:
    """Return the answer of a route that raises, to a POST: what is posted names models, what is got is one."""

    @post("/fails", opt={"dialect": dialect, **options})
    async def handler() -> None:
        """Raise what is to be answered."""
        raise error()

    with TestClient(_app(handler)) as client:
        return client.post("/fails")


def _app(handler: Any) -> Litestar:
    return Litestar(
        route_handlers=[handler],
        openapi_config=None,
        logging_config=None,
        state=State({"metrics": Metrics()}),
        exception_handlers={
            ApplianceError: error_response,
            HTTPException: http_error_response,
            Exception: internal_error_response,
        },
    )
