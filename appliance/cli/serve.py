"""``appliance serve``: first boot, then the service."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec

from appliance.cli import settings_of
from appliance.cli.privacy import hide_memory
from appliance.cli.welcome import Welcome, url_of
from appliance.config import Settings
from appliance.errors import ApplianceError
from appliance.service.handover import Handover, take_over
from appliance.service.listeners import listeners_of
from appliance.service.notify import Notifier
from appliance.service.presence import Presence
from appliance.service.probe import require_answer

if TYPE_CHECKING:
    import uvicorn

    from appliance.api.connection import ConnectionLimits
    from appliance.control.stores import Stores
    from appliance.gateway.catalog import Catalog
    from appliance.tls.server import ServerTls

log = logging.getLogger(__name__)

LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"
KEEP_ALIVE_SECONDS = 65
DRAIN_SECONDS = 10
# Files that are open beside the connections: packs, stores, uploads, pipes to workers.
OTHER_FILES = 512
# Opening a store may mean migrating it, in one transaction.
LONGEST_OPENING_SECONDS = 3600.0
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@click.command("serve")
@click.option("--host", help="The address to listen on.")
@click.option("--port", type=int, help="The port to listen on.")
@click.option("--bootstrap-key-file", type=click.Path(path_type=Path), help="The first administrator's key.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.pass_context
def command(ctx: click.Context, /, **flags: object) -> None:
    """Start the service; the first start shows the first administrator's key, or a code that makes one."""
    # First: no other program that is started from here may find what was handed over.
    handover = take_over()
    # Nearly all that is made until the API is built stays; collecting meanwhile would take a tenth of the start.
    gc.disable()
    settings = settings_of(ctx, **flags)
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    # The server logs a traceback for every request that it cuts short at the end, and says how many those are.
    logging.getLogger("uvicorn.error").addFilter(is_no_cancellation)
    hide_memory()
    # The server hands a signal on to these handlers once it has drained.
    for number in ENDING_SIGNALS:
        signal.signal(number, stop)
    # Twice: running and idle connections are counted apart.
    allow_open_files(2 * settings.max_connections + OTHER_FILES)
    run(settings, handover)


def is_no_cancellation(record: logging.LogRecord) -> bool:
    """Tell whether a record is about anything but a cancelled task."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """End the program in good order: everything open is closed on the way out, and no signal breaks that."""
    for number in ENDING_SIGNALS:
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


def run(settings: Settings, handover: Handover) -> None:
    """Open the port, then the stores, and serve until a signal says stop. Raises ServiceError, and theirs."""
    import uvloop

    from appliance.control.stores import open_stores

    notifier = Notifier(handover.notify_address)
    with ExitStack() as opened:
        # The port comes first: when it is not free, nothing is made.
        listeners = listeners_of(settings, handover.listeners)
        for listener in listeners:
            opened.enter_context(closing(listener))
        with notifier.extending("opening the store", LONGEST_OPENING_SECONDS):
            stores = opened.enter_context(open_stores(settings, first_boot=True))
            tls = server_tls(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runner.run(serve(stores, listeners, tls, notifier, handover.watchdog_seconds))
            except asyncio.CancelledError:  # a signal came before there was a server to end
                raise SystemExit(0) from None


async def serve(
    stores: Stores,
    listeners: list[socket.socket],
    tls: ServerTls | None,
    notifier: Notifier,
    watchdog_seconds: float | None,
) -> None:
    """Serve over open stores until a signal says stop.

    Models are read first, by threads that hardly need the interpreter: it imports and builds the API meanwhile.
    """
    from appliance.control.pack_trials import leave_deadly
    from appliance.engines.cores import Cores
    from appliance.gateway.catalog import Catalog
    from appliance.packs import attempts
    from appliance.signing.trust import trust_store

    catalog = Catalog(stores.packs, Cores(stores.settings.threads), stores.settings)
    try:
        with cancelled_by_signals():
            catalog.leave_out(
                await asyncio.to_thread(leave_deadly, stores.packs, trust_store(stores.settings))
            )
            await catalog.refresh()
            server = await asyncio.to_thread(
                build_server, stores, catalog, listeners, tls, notifier, watchdog_seconds
            )
        keep_modules()
        await server.serve(sockets=listeners)
    finally:
        await catalog.close()
        # Whatever ends it here is no fault of a pack on trial.
        attempts.clear(stores.packs.path)


@contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """While this context lasts, a signal to end cancels the current task.

    ``stop`` may raise wherever the program is, with a lock held that a thread waits for.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101
    ending = False

    def cancel(_number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = True
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        loop.call_soon_threadsafe(task.cancel)

    for number in ENDING_SIGNALS:
        signal.signal(number, cancel)
    try:
        yield
    finally:
        # Also after a start that failed: the loop to cancel in is gone soon.
        for number in () if ending else ENDING_SIGNALS:
            signal.signal(number, stop)


def server_tls(settings: Settings) -> ServerTls | None:
    """Return the service's certificate and keys; None where it speaks plain HTTP. Raises TlsError."""
    if settings.tls == "off":
        return None
    from appliance.tls.server import ServerTls

    return ServerTls(settings)


def keep_modules() -> None:
    """Collect garbage again, without looking at what is there: modules and routes stay as long as the program."""
    gc.freeze()
    gc.enable()


def build_server(
    stores: Stores,
    catalog: Catalog,
    listeners: list[socket.socket],
    tls: ServerTls | None,
    notifier: Notifier,
    watchdog_seconds: float | None,
) -> uvicorn.Server:
    """Import the API and return a server of it. Takes a large part of a second; for a thread."""
    import uvicorn

    from appliance.api.connection import ConnectionLimits, limited_connection
    from appliance.app import build_app

    settings = stores.settings
    by_code = settings.first_boot == "code"
    welcome = Welcome(
        url=url_of(settings, listeners),
        fingerprint=None if tls is None else tls.fingerprint,
        setup_code=stores.setup.new_code() if by_code and stores.setup.needed() else None,
        with_example=not by_code,
    )

    async def answers() -> None:
        for listener in listeners:
            await require_answer(listener, secure=tls is not None)

    connections = ConnectionLimits(settings.max_connections)
    config = uvicorn.Config(
        build_app(stores, catalog, connections, Presence(notifier, answers, watchdog_seconds)),
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
    return announcing_server(config, welcome, stores.make_first_key, notifier, connections, tls)


def announcing_server(
    config: uvicorn.Config,
    welcome: Welcome,
    make_first_key: Callable[[], str | None],
    notifier: Notifier,
    limits: ConnectionLimits,
    tls: ServerTls | None,
) -> uvicorn.Server:
    """Return a server that prints ``welcome`` once it answers requests, and says when it begins to end."""
    import uvicorn

    from appliance.api.connection import Connection
    from appliance.api.secure_connection import SecureListener

    class AnnouncingServer(uvicorn.Server):
        keeping: asyncio.Task[None] | None = None
        secure: list[SecureListener] = []  # noqa: RUF012 - replaced, not changed

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            # With TLS the connections are accepted here, and the server itself listens nowhere.
            await super().startup(sockets if tls is None else [])
            if not self.started:
                return
            if tls is not None:
                self.keeping = asyncio.create_task(tls.keep(), name="certificate")
                self.secure = [
                    SecureListener(listener, self.connection, tls.context, limits)
                    for listener in sockets or []
                ]
                for each in self.secure:
                    each.start()
            try:
                # Only now: a key that was made by a start that failed would never be shown. Not in a thread: no request
                # is answered before it is shown.
                key = make_first_key()
            except ApplianceError:
                await self.shutdown(sockets)
                raise
            click.echo(msgspec.structs.replace(welcome, first_key=key).text())

        def connection(self) -> Connection:
            made = config.http_protocol_class(
                config=config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )  # type: ignore[call-arg] # as the server itself does
            assert isinstance(made, Connection)  # noqa: S101
            return made

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            notifier.stopping()
            if self.keeping is not None:
                self.keeping.cancel()
            for each in self.secure:
                await each.close()
            await super().shutdown(sockets)

    return AnnouncingServer(config)
