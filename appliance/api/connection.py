"""One client's connection: a bound on what may be sent, held and awaited before anybody is known.

The server's own protocol waits without end for a first request head, takes headers of any size, and
counts silent connections against its limit. Here a head has a deadline and a size; running requests
and idle connections are counted apart, so that silence locks nobody out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import uuid
from typing import Any

import httptools
import msgspec
from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from appliance.api.dialect import UNION
from appliance.api.observation import REQUEST_ID
from appliance.errors import ApplianceError, InvalidRequestError, OverloadedError

HEAD_SECONDS = 15.0
MAX_HEAD_BYTES = 64 << 10
# Answered also when the box is full: an operator asks just then.
ALWAYS_ANSWERED = b"/health"

Headers = list[tuple[bytes, bytes]]


class HeadTooLargeError(InvalidRequestError):
    """The URL and the headers together, or the trailers of a body, are too long."""

    status = 431


class ConnectionLimits:
    """The connections of one server: at most ``maximum`` run a request, and as many are idle.

    Idle is a connection that has no request running: silent, in the middle of a head, or kept alive.
    Of too many idle ones, the oldest of the address that has the most is closed.
    """

    def __init__(
        self, maximum: int, *, head_seconds: float = HEAD_SECONDS, head_bytes: int = MAX_HEAD_BYTES
    ) -> None:
        self.maximum = maximum
        self.head_seconds = head_seconds
        self.head_bytes = head_bytes
        self._running: set[Connection] = set()
        self._idle: dict[bytes, dict[Connection, None]] = {}
        self._idle_count = 0

    @property
    def running(self) -> int:
        """How many connections run a request."""
        return len(self._running)

    @property
    def idle(self) -> int:
        """How many do not."""
        return self._idle_count

    def full_for(self, connection: Connection) -> bool:
        """Tell whether one more request, on this connection, would be too many."""
        return len(self._running) + (connection not in self._running) > self.maximum

    def run(self, connection: Connection) -> None:
        """Count the connection among those that run a request."""
        self._leave_idle(connection)
        self._running.add(connection)

    def rest(self, connection: Connection) -> None:
        """Count the connection among the idle ones, and close another when those are too many."""
        self.leave(connection)
        self._idle.setdefault(connection.peer, {})[connection] = None
        self._idle_count += 1
        if self._idle_count > self.maximum:
            most = max(self._idle.values(), key=len)
            oldest = next(iter(most))
            self.leave(oldest)
            oldest.transport.abort()

    def leave(self, connection: Connection) -> None:
        """Forget a connection."""
        self._running.discard(connection)
        self._leave_idle(connection)

    def _leave_idle(self, connection: Connection) -> None:
        of_peer = self._idle.get(connection.peer, {})
        if connection in of_peer:
            del of_peer[connection]
            self._idle_count -= 1
            if not of_peer:
                del self._idle[connection.peer]


class Connection(HttpToolsProtocol):
    """The server's protocol with limits. Whenever no request runs, a timer does."""

    limits: ConnectionLimits
    peer: bytes = b""

    _timer: asyncio.TimerHandle | None = None
    _deadline = 0.0
    # Bytes taken since the last that was of use: a whole head, a piece of a body, the end of one.
    _useless_bytes = 0
    _progress = False
    _in_body = False
    _unsent = 0
    # Where the head ends, in what was read last, of a request that asks for another protocol.
    _asked_until: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Start the time for the first head."""
        super().connection_made(transport)
        self._served_app: Any = self.app
        self.peer = peer_group(self.client[0] if self.client else "")
        self._arm(self.limits.head_seconds)
        self.limits.rest(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers and leave the count."""
        self._disarm()
        self._unset_keepalive_if_required()
        self.limits.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; refuse a head, or trailers, that do not end."""
        self._progress = False
        super().data_received(data)
        while self._asked_until is not None:
            data = self._head_as_plain_http() + data[self._asked_until :]
            self._asked_until = None
            # The one before has ended the connection where the client wants that.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as the server's own
            super().data_received(data)
        # What comes in one read is small; only what adds up over many is counted here.
        self._useless_bytes = 0 if self._progress else self._useless_bytes + len(data)
        if self.transport.is_closing():
            self._arm(self.timeout_keep_alive)
        elif self._useless_bytes > self.limits.head_bytes:
            self._refuse(head_too_large())
        elif not self._runs() and self.timeout_keep_alive_task is None:
            # The server drops its keep-alive timer at the first byte, be it an empty line.
            self._arm(self.timeout_keep_alive if self._in_body else self.limits.head_seconds)

    def on_message_begin(self) -> None:
        """Start the time for this head."""
        super().on_message_begin()
        self._arm(self.limits.head_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers are dropped, nothing reads them."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Give the request to the application, or to a refusal."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise InvalidRequestError("This is no proxy.")  # the parser takes it for one that is not HTTP
            return  # its head comes once more
        self._disarm()
        self._progress = self._in_body = True
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.head_bytes:
            self.app = refusal(head_too_large(), close=True)
            self.url = b"/"  # the URL parser has a limit of its own
        elif self.limits.full_for(self) and not self.url.startswith(ALWAYS_ANSWERED):
            error = OverloadedError("Too many requests are running; try again shortly.")
            self.app = refusal(error)
        else:
            self.app = self._served_app
        super().on_headers_complete()
        self.limits.run(self)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the next head."""
        if self.parser.should_upgrade():
            return
        self._progress = True
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next request that waits, or rest."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._arm(self.timeout_keep_alive)  # what was written may never be read
        if not self._runs():
            self.limits.rest(self)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection."""
        self._expire()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the shape of every other error."""
        self._refuse(InvalidRequestError(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing (anybody could fill the log with it), but have the request read as plain HTTP.

        The parser takes all that follows the head for another protocol: it would leave out the body, and read it as
        the next request. Behind a proxy that shares its connections, its answer would be another client's.
        """
        error = sys.exception()
        self._asked_until = None if error is None else error.args[0]

    def _head_as_plain_http(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _runs(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ApplianceError) -> None:
        if not self._runs():  # else the text would land in the middle of another answer
            headers, body = shaped(error)
            lines = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
            head = b"".join(name + b": " + value + b"\r\n" for name, value in lines)
            self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + body)
        self.transport.close()
        self._arm(self.timeout_keep_alive)

    def _arm(self, seconds: float) -> None:
        deadline = self.loop.time() + seconds
        if self._timer is not None:
            if self._deadline <= deadline:
                return
            self._timer.cancel()
        self._deadline = deadline
        self._timer = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._disarm()
        unsent = self.transport.get_write_buffer_size()
        if self._runs() and not self.transport.is_closing():
            self._arm(self.limits.head_seconds)  # the start of a pipelined head waits for its turn
        elif unsent and unsent != self._unsent:
            self._unsent = unsent  # the last answer is still being read, slowly
            self._arm(self.timeout_keep_alive)
        elif unsent:
            self.transport.abort()
        else:
            self.transport.close()


def limited_connection(limits: ConnectionLimits) -> type[Connection]:
    """Return the protocol class, to give to the server, whose connections share ``limits``."""
    return type("LimitedConnection", (Connection,), {"limits": limits})


def peer_group(host: str) -> bytes:
    """Return what counts as one peer: an IPv4 address, or the /64 that one IPv6 host has for itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.encode()
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped.packed if address.ipv4_mapped else address.packed[:8]
    return address.packed


def head_too_large() -> HeadTooLargeError:
    """Return the error for a head beyond the limit."""
    return HeadTooLargeError("The URL and headers of the request are too large.")


def shaped(error: ApplianceError) -> tuple[Headers, bytes]:
    """Return the headers and the JSON body of an error, outside of any mount."""
    body = msgspec.json.encode(UNION.error_body(error))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (REQUEST_ID, uuid.uuid4().hex.encode()),
    ]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    return headers, body


def refusal(error: ApplianceError, *, close: bool = False) -> ASGIApp:
    """Return an application that answers every request with ``error``; ``close`` ends the connection too."""

    async def refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers, body = shaped(error)
        if close:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return refuse
