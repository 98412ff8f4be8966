"""The command line's side: through the socket when the service runs, else on the stores directly."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from appliance.config import Settings
from appliance.control.address import socket_address
from appliance.control.commands import READS, Commands, Progress
from appliance.control.errors import ControlError
from appliance.control.stores import open_stores
from appliance.jobs.handlers import job_handlers
from appliance.jobs.runner import JobRunner
from appliance.releases.gate import is_switched

# The one command that works through a background job.
INSTALL = "pack.install"


def run_command(
    settings: Settings,
    command: str,
    arguments: dict[str, Any],
    progress: Progress | None = None,
    *,
    without_service: Callable[[], Any] | None = None,
) -> Any:
    """Run a writing command where it may write, and return its result.

    ``without_service`` is what to do when no service runs, for commands that only read. Raises ControlError
    with the service's words, or the error of the room when run here.
    """
    try:
        request = msgspec.json.encode({"command": command, "arguments": arguments}) + b"\n"
    except UnicodeEncodeError:  # bytes of the command line
        raise ControlError("an argument is not UTF-8") from None
    progress = progress or (lambda _done, _total: None)
    connection = _connect(settings)
    if connection is None and without_service is not None:
        return without_service()
    if connection is None:
        return _run_here(settings, command, arguments, progress)
    with connection, connection.makefile("rb") as answers:
        connection.sendall(request)
        for line in answers:
            message = msgspec.json.decode(line)
            if "error" in message:
                raise ControlError(message["error"])
            if "result" in message:
                return message["result"]
            progress(*message["progress"])
    raise ControlError("the service closed the control socket before it answered")


def _connect(settings: Settings) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        with socket_address(settings.control_path) as address:
            connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise ControlError(
            f"cannot reach the service at {settings.control_path}: {error.strerror}"
        ) from error
    return connection


def become_owner(directory: Path) -> None:
    """As root, take on the owner of the data directory: root's files would lock the service out."""
    if os.geteuid() != 0 or not directory.is_dir():
        return
    status = directory.stat()
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)


def _run_here(settings: Settings, command: str, arguments: dict[str, Any], progress: Progress) -> Any:
    become_owner(settings.data_dir)
    # Between the snapshot and a new release's first answer nobody serves: what was acknowledged then could be lost.
    if command not in READS and is_switched(settings.releases_dir, settings.data_dir):
        raise ControlError("the appliance is being upgraded: start the service, or try again in a moment")
    if command != INSTALL and not settings.database_path.exists():
        raise ControlError(f"there is no store in {settings.data_dir} yet: start the service once")

    async def run() -> Any:
        with open_stores(settings) as stores:
            jobs = JobRunner(stores.database, job_handlers(stores.packs, settings))
            if command == INSTALL:
                jobs.start()
            try:
                return await Commands(stores, jobs).run(command, arguments, progress)
            finally:
                jobs.close()

    return asyncio.run(run())
