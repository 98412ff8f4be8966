"""The outermost layer: whatever goes wrong below it, the account of a request is closed."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from appliance.api.disconnect import _AT_END
from appliance.api.model_call import _CALL
from appliance.api.monitoring.metrics import Metrics
from appliance.api.observation import observed


class Call:
    """Notes how it was closed."""

    def __init__(self) -> None:
        self.closed: list[int] = []

    def headers(self) -> dict[str, str]:
        return {}

    def close(self, status: int) -> None:
        self.closed.append(status)


async def nothing(*_: Any) -> dict[str, Any]:
    return {"type": "http.disconnect"}


def broken() -> None:
    raise RuntimeError("a generation that cannot be cancelled")


@pytest.mark.parametrize("answers", [True, False])
async def test_a_callback_that_fails_keeps_nothing_from_being_accounted_for(
    answers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    call, ended = Call(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[_CALL] = call
        scope[_AT_END] = [broken, lambda: ended.append(1)]
        if answers:
            await send({"type": "http.response.start", "status": 201, "headers": []})
            return
        raise ValueError("the handler failed too")

    metrics = Metrics()
    scope: Any = {"type": "http", "method": "POST", "headers": [], "path": "/"}
    service = observed(app, metrics, 10)
    with caplog.at_level(logging.CRITICAL):
        if answers:
            await service(scope, cast("Any", nothing), cast("Any", nothing))
        else:
            with pytest.raises(ValueError, match="the handler failed too"):
                await service(scope, cast("Any", nothing), cast("Any", nothing))
    assert call.closed == [201 if answers else 500]
    assert ended == [1]
    assert metrics.in_flight._value.get() == 0


@pytest.mark.parametrize(
    ("said", "kept"), [([], b"no-store"), ([(b"cache-control", b"max-age=86400")], b"max-age=86400")]
)
async def test_no_cache_keeps_an_answer_that_does_not_say_so(
    said: list[tuple[bytes, bytes]], kept: bytes
) -> None:
    """Shared caches leave out what is asked for with an Authorization, but do not know the other headers for keys."""
    started: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": said})

    async def send(message: dict[str, Any]) -> None:
        started.append(message)

    scope: Any = {"type": "http", "method": "GET", "headers": [], "path": "/"}
    await observed(app, Metrics(), 10)(scope, cast("Any", nothing), cast("Any", send))
    (start,) = started
    assert [value for name, value in start["headers"] if name == b"cache-control"] == [kept]
