"""Errors as clients read them: for each mount and situation the exact status, body and headers.

The table below is the specification; errors from within have another, in test_errors_from_within.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx
import pytest

from tests.api.error_shapes import both, item, only
from tests.service import KEY, PLAIN, Service

UNION_LIKE = ("/v1", "/compressa/v1", "/compactifai/v1")
OGL = "/opengatellm/v1"
LIVE = {"Authorization": f"Bearer {KEY}"}
NO_KEY_TEXT = "You didn't provide an API key. Send it as 'Authorization: Bearer KEY'."


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
            ("POST", "/chat/completions", {"headers": LIVE, "json": {"model": "nope", "messages": []}}),
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
