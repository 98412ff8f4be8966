"""Whatever a stranger may send."""

from __future__ import annotations

import json
from typing import Any

import httpx
from hypothesis import strategies as st

# A body is JSON, whatever Python thinks of it: "NaN" and "Infinity" stand in it as words.
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1 << 31, (1 << 63) - 1, 1 << 63, 1 << 64, 10**400, -(10**30)])
    | st.floats()
    | st.sampled_from(
        ["nan", "inf", "-inf", "1", "1.0", "1e9", "", " ", "master", "null", "\0", "a\0b", "\ud800"]
    )
    | st.text(max_size=8)
    | st.text(min_size=300, max_size=400)
)
JSON = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def no_requests(field: str) -> list[bytes]:
    """Return bodies that are no JSON, too deep, or no UTF-8, where they can in the value of a field."""
    name = json.dumps(field).encode()
    return [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 200_000,
        (b"{" + name + b":") * 100_000 + b"1" + b"}" * 100_000,
        b"{" + name + b": NaN}",
        b"{" + name + b': "\\ud800"}',
        b"{" + name + b": 1e999}",
        b"{" + name + b": " + b"9" * 5000 + b"}",
    ]


def bodies(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return bodies with these fields, each of its own values or of any, and with others beside."""
    known = {name: values | JSON for name, values in fields.items()}
    return st.fixed_dictionaries({}, optional={**known, "unknown": JSON}) | JSON


def send(http: httpx.Client, method: str, path: str, body: Any) -> httpx.Response:
    """Send a body that no client library would make."""
    # "surrogatepass" for lone surrogates, which are then no UTF-8.
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return http.request(method, path, content=content, headers={"Content-Type": "application/json"})


def refuses(http: httpx.Client, path: str, known: int, body: bytes) -> bool:
    """Tell whether a body is neither one to make what ``path`` lists nor one to change what is known there."""
    sent = (("POST", path), ("PATCH", f"{path}/{known}"))
    return all(http.request(method, to, content=body).status_code in (400, 422) for method, to in sent)


def well(response: httpx.Response) -> bool:
    """Tell whether an answer is one of those that the contract knows."""
    return response.status_code in (201, 204) or 400 <= response.status_code < 500
