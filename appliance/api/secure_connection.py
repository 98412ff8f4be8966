"""Accepting TLS connections: one whose handshake is not done counts like every other that has no request yet.

The server's own TLS counts no connection before its handshake: who connects and stays silent would cost nothing but
a descriptor of ours, without end. Here it is an idle connection, and the oldest of too many is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import cast

from appliance.api.connection import Connection, ConnectionLimits, peer_group

log = logging.getLogger(__name__)

# After an accept that failed for want of descriptors or memory.
PAUSE_SECONDS = 0.1


class Handshake:
    """A connection whose handshake is going on; to the limits, a connection: a peer, and what can be aborted."""

    def __init__(self, peer: bytes) -> None:
        self.peer = peer
        self.task: asyncio.Task[None] | None = None

    @property
    def transport(self) -> Handshake:
        """What ``abort`` is called on."""
        return self

    def abort(self) -> None:
        """Close it."""
        if self.task is not None:
            self.task.cancel()


class SecureListener:
    """Accepts on a listening socket and gives each connection, once it is secure, to what ``make`` returns."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], Connection],
        context: ssl.SSLContext,
        limits: ConnectionLimits,
    ) -> None:
        self._listener = listener
        self._make = make
        self._context = context
        self._limits = limits
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin."""
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(), name="accept")

    async def close(self) -> None:
        """Accept no more; what is being opened is closed."""
        tasks = {task for task in (self._accepting, *self._handshakes) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            handshake = Handshake(peer_group(address[0]))
            handshake.task = loop.create_task(self._open(connection, handshake), name="handshake")
            self._handshakes.add(handshake.task)
            handshake.task.add_done_callback(self._handshakes.discard)

    async def _open(self, connection: socket.socket, handshake: Handshake) -> None:
        counted = cast("Connection", handshake)
        self._limits.rest(counted)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.head_seconds,
            )
        except (OSError, RuntimeError) as error:
            # Plain HTTP, a client that does not trust us, or one that left: nothing of ours.
            log.debug("no handshake: %s", error)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            self._limits.leave(counted)
