"""Errors that no request to a box without models brings about, in the words of each mount: status, body, headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from litestar import Litestar, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.params import FromPath
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
from tests.api.error_shapes import both, item, only

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


@pytest.mark.parametrize("error", [ZeroDivisionError, lambda: ApplianceError("told")])
def test_a_path_begins_no_line_of_its_own_in_the_log(
    error: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    @get("/fails/{what:path}")
    async def handler(what: FromPath[str]) -> None:
        """Raise what is to be logged."""
        raise error()

    with TestClient(_app(handler)) as client:
        assert client.get("/fails/x%0aERROR%20audit%3a%1b[2J").status_code == 500
    # Once another test has set the level of all, the client's lines are there too.
    (message,) = (each.getMessage() for each in caplog.records if each.name.startswith("appliance."))
    assert "/fails/x%0aERROR" in message
    assert message.isprintable()


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
