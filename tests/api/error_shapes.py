"""The two shapes of an error: the union's, and OpenGateLLM's."""

from __future__ import annotations

from typing import Any


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
