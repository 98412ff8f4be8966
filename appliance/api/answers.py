"""The plain answers of the routes that administer things."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response


def json_answer(body: Any, status: int = 200) -> Response[bytes]:
    """Answer with a JSON body."""
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")


def created(body: Any) -> Response[bytes]:
    """Answer 201."""
    return json_answer(body, 201)


def listed(items: list[Any], **beside: Any) -> Response[bytes]:
    """Answer with a list, and with what stands ``beside`` it."""
    return json_answer({"object": "list", **beside, "data": items})


def no_content() -> Response[None]:
    """Answer 204."""
    return Response(None, status_code=204)
