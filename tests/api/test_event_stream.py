"""Streams of events that fail after their first byte."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from appliance.api.dialect import COMPACTIFAI, COMPRESSA, OPENGATELLM, UNION, Dialect
from appliance.api.event_stream import event_stream
from appliance.errors import OverloadedError


@pytest.mark.parametrize("dialect", [UNION, COMPRESSA, COMPACTIFAI, OPENGATELLM], ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OverloadedError("It broke."), "It broke."),
        (ZeroDivisionError("secret"), "The server had an error while processing your request."),
    ],
)
async def test_a_stream_that_fails_says_so_in_an_event(
    dialect: Dialect, error: Exception, message: str
) -> None:
    async def events() -> Any:
        yield {"choices": []}
        raise error

    seen: list[int] = []
    stream = event_stream(events(), dialect, on_failure=seen.append)
    frames: list[Any] = [frame async for frame in stream.iterator]  # type: ignore[union-attr] # asynchronous

    assert frames[0] == b'data: {"choices":[]}\n\n'
    assert frames[1].startswith(b"data: ")
    shown = msgspec.json.decode(frames[1].removeprefix(b"data: "))
    assert shown == {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
    assert frames[2:] == [b"data: [DONE]\n\n"]
    assert seen == [503 if isinstance(error, OverloadedError) else 500]
