"""Server-sent events as OpenAI's clients read them: ``data: <json>`` frames, then ``[DONE]``."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import msgspec
from litestar.response import Stream

from appliance.api.dialect import Dialect, error_object
from appliance.errors import ApplianceError

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"


def frame(payload: Any) -> bytes:
    """Encode one event."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def event_stream(
    events: AsyncGenerator[Any, None],
    dialect: Dialect,
    *,
    done: bool = True,
    on_failure: Callable[[int], None] | None = None,
) -> Stream:
    """Answer with a stream of events; a failure after the first byte becomes an error event.

    ``on_failure`` is told the status that it would have had before.

    An event that is bytes is sent as it is: frames that were encoded already, or nothing. The work behind
    ``events`` is stopped by whoever began it (``disconnect.at_end``): a stream whose client leaves early may
    never be started.
    """
    return Stream(
        _frames(events, dialect, done, on_failure),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _frames(
    events: AsyncGenerator[Any, None],
    dialect: Dialect,
    done: bool,
    on_failure: Callable[[int], None] | None,
) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            if type(event) is not bytes:
                yield frame(event)
            elif event:
                yield event
    except ApplianceError as error:
        if on_failure is not None:
            on_failure(error.status)
        yield frame({"error": error_object(dialect.translated(error))})
    except Exception:
        log.exception("a stream failed")
        if on_failure is not None:
            on_failure(500)
        failure = ApplianceError("The server had an error while processing your request.")
        yield frame({"error": error_object(failure)})
    finally:
        await events.aclose()
    if done:
        yield DONE
