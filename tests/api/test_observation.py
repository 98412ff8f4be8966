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
