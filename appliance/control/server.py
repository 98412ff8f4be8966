"""The service's side of the control socket: one JSON line in, JSON lines out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec

from appliance.control.address import socket_address
from appliance.control.commands import Commands
from appliance.errors import ApplianceError

log = logging.getLogger(__name__)

MAX_LINE = 1 << 20


class CommandLine(msgspec.Struct):
    """A command with its arguments, as the client sends it."""

    command: str
    arguments: dict[str, Any] = {}


class ControlServer:
    """Listens on a Unix socket for root and the service's own user."""

    def __init__(self, path: Path, commands: Commands) -> None:
        self._path = path
        self._commands = commands
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. The caller holds the store's lock, so a socket file left behind is stale."""
        self._path.unlink(missing_ok=True)
        with socket_address(self._path) as address:
            self._server = await asyncio.start_unix_server(self._serve, address, limit=MAX_LINE)
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(message: dict[str, Any]) -> None:
            writer.write(msgspec.json.encode(message) + b"\n")

        try:
            if not _may_command(writer.get_extra_info("socket")):
                send({"error": "only root and the service's user may send commands"})
                return
            line = msgspec.json.decode(await reader.readline(), type=CommandLine)
            result = await self._commands.run(
                line.command, line.arguments, lambda done, total: send({"progress": [done, total]})
            )
            send({"result": result})
        except ApplianceError as error:
            send({"error": error.message})
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            send({"error": f"the command is not well formed: {error}"})
        except Exception:
            log.exception("a control command failed")
            send({"error": "the command failed; the service's log has the reason"})
        finally:
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def _may_command(connection: Any) -> bool:
    """Check the peer's user id, as the kernel tells it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user_id, _ = struct.unpack("3i", credentials)
    return user_id in (0, os.geteuid())
