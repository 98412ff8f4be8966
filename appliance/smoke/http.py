"""Checks of what answers HTTP: the server's parts, and the documentation page's assets."""

from __future__ import annotations

import asyncio

import swagger_ui_bundle

from appliance.api.documentation import ASSETS
from appliance.smoke.registry import Ground, SmokeError

GREETING = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def documentation(_: Ground) -> str:
    """Read every asset of the page: nothing of it comes from elsewhere."""
    for name in ASSETS:
        if not (swagger_ui_bundle.swagger_ui_path / name).read_bytes():
            raise SmokeError(f"the documentation page's {name} is empty")
    return str(swagger_ui_bundle.swagger_ui_path.name)


def server(_: Ground) -> str:
    """Run uvloop, parse an answer with httptools, and load the server and all of the API's modules."""
    import httptools
    import uvloop

    import appliance.app  # noqa: F401 - loads every room

    class Heard:
        def __init__(self) -> None:
            self.done = False

        def on_message_complete(self) -> None:
            self.done = True

    async def parsed() -> bool:
        heard = Heard()
        httptools.HttpResponseParser(heard).feed_data(GREETING)
        await asyncio.sleep(0)
        return heard.done

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if not runner.run(parsed()):
            raise SmokeError("httptools does not parse an answer")
    return f"httptools {httptools.__version__}, on uvloop"
