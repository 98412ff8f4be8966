"""``appliance serve``: first boot, then the service."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from appliance.cli import settings_of
from appliance.cli.privacy import hide_memory
from appliance.config import Settings
from appliance.control.errors import ControlError

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"
BACKLOG = 1024
EXAMPLE_BODY = (
    '{"model": "smollm2-135m-instruct", "max_tokens": 100, "messages": '
    '[{"role": "user", "content": "Why is the sky blue?"}]}'
)
KEEP_ALIVE_SECONDS = 65
DRAIN_SECONDS = 10
# Files that are open beside the connections: packs, stores, uploads, pipes to workers.
OTHER_FILES = 512


@click.command("serve")
@click.option("--host", help="The address to listen on.")
@click.option("--port", type=int, help="The port to listen on.")
@click.option("--bootstrap-key-file", type=click.Path(path_type=Path), help="The first administrator's key.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.pass_context
def command(ctx: click.Context, /, **flags: object) -> None:
    """Start the service; the first start makes the first administrator and prints its key."""
    settings = settings_of(ctx, **flags)
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    # The client library logs every call at info level.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # The server logs a traceback for every request that it cuts short at the end, and says how many those are.
    logging.getLogger("uvicorn.error").addFilter(is_no_cancellation)
    hide_memory()
    # The server hands a signal on to these handlers once it has drained.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    # Twice: running and idle connections are counted apart.
    allow_open_files(2 * settings.max_connections + OTHER_FILES)
    listener = listen(settings)
    with listener:
        run(settings, listener)


def is_no_cancellation(record: logging.LogRecord) -> bool:
    """Tell whether a record is about anything but a cancelled task."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """End the program in good order: everything open is closed on the way out, and no signal breaks that."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to ``count`` as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < count:
        log.warning("only %d files may be open; max_connections may need %d", allowed, count)


def listen(settings: Settings) -> socket.socket:
    """Take the port before anything is opened. Raises ControlError when it is not free."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ControlError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}. "
            "Is the service running already? Another port: --port or APPLIANCE_PORT."
        ) from error
    return listener


def run(settings: Settings, listener: socket.socket) -> None:
    """Open the stores and serve until a signal says stop."""
    import uvicorn

    from appliance.api.connection import ConnectionLimits, limited_connection
    from appliance.app import build_app
    from appliance.control.stores import open_stores

    with open_stores(settings, first_boot=True) as stores:
        connections = ConnectionLimits(settings.max_connections)
        config = uvicorn.Config(
            build_app(stores, connections),
            loop="uvloop",
            http=limited_connection(connections),
            ws="none",
            proxy_headers=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        server = announcing_server(config, welcome(settings, stores.first_key))
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))


def announcing_server(config: uvicorn.Config, text: str) -> uvicorn.Server:
    """Return a server that prints ``text`` once it answers requests."""
    import uvicorn

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                click.echo(text)

    return AnnouncingServer(config)


def welcome(settings: Settings, first_key: str | None) -> str:
    """Return what an operator sees at start: the URL, the first key once, and a call to copy."""
    url = f"http://{_shown_host(settings.host)}:{settings.port}"
    lines = ["", f"  appliance is serving at {url}", f"  API documentation:      {url}/docs", ""]
    if first_key is not None:
        lines += [f"  Administrator key (shown only this once): {first_key}", ""]
    lines += [
        f"  curl {url}/v1/chat/completions \\",
        f'    -H "Authorization: Bearer {first_key or "$APPLIANCE_KEY"}" -H "Content-Type: application/json" \\',
        f"    -d '{EXAMPLE_BODY}'",
        "",
    ]
    if first_key is None:
        lines += ["  Lost the key? Make another: appliance key create --name NAME", ""]
    return "\n".join(lines)


def _shown_host(host: str) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - shown, not bound
    return f"[{shown}]" if ":" in shown and not shown.startswith("[") else shown
