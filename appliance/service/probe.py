"""Asking oneself: does a listener answer HTTP?"""

from __future__ import annotations

import asyncio
import socket
import ssl

from appliance.service.errors import ServiceError
from appliance.service.listeners import own_address

ANSWER_SECONDS = 5.0
_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def require_answer(listener: socket.socket, *, secure: bool) -> None:
    """Ask for /health through the listener. Raises ServiceError when the answer is not 200 in time."""
    host, port = own_address(listener)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=_own_context() if secure else None)
            try:
                writer.write(_REQUEST)
                status = await reader.readline()
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError) as error:
        raise ServiceError(f"the service does not answer at {host} port {port}: {error}") from error
    if b" 200 " not in status:
        raise ServiceError(f"the service answers {status[:80]!r} at {host} port {port}")


def _own_context() -> ssl.SSLContext:
    """Return a context that takes any certificate: it is our own socket, and the operator's may not name it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
