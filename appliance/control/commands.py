"""The commands that write, once: run by the service for its socket, or by a command line without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from appliance.control.errors import ControlError
from appliance.control.stores import Stores
from appliance.jobs.runner import JobRunner

# Called with (done, total) while a command works.
Progress = Callable[[int, int], None]
Command = Callable[["Commands", dict[str, Any], Progress], Awaitable[Any]]


class Commands:
    """The commands over open stores; ``packs_changed`` is awaited after a pack was removed."""

    def __init__(
        self, stores: Stores, jobs: JobRunner, packs_changed: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._stores = stores
        self._jobs = jobs
        self._packs_changed = packs_changed

    async def run(self, name: str, arguments: dict[str, Any], progress: Progress) -> Any:
        """Run one command and return its JSON-able result. Raises ApplianceError of its room."""
        command = COMMANDS.get(name)
        if command is None:
            raise ControlError(f"unknown command {name!r}: is the service of another version?")
        return await command(self, arguments, progress)

    async def _key_create(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        user_id = arguments.get("user_id") or await self._first_administrator()
        created = await self._stores.keyring.create(
            user_id, str(arguments["name"]), arguments.get("expires_at")
        )
        return msgspec.to_builtins(created)

    async def _key_list(self, _arguments: dict[str, Any], _progress: Progress) -> Any:
        return msgspec.to_builtins(await self._stores.keyring.list())

    async def _key_revoke(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        await self._stores.keyring.revoke(int(arguments["id"]))
        return {"revoked": int(arguments["id"])}

    async def _pack_install(self, arguments: dict[str, Any], progress: Progress) -> Any:
        job = await self._jobs.submit("pack-install", {"source": str(arguments["source"])})
        return await self._jobs.wait(job, progress)

    async def _pack_remove(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        await asyncio.to_thread(self._stores.packs.remove, str(arguments["name"]))
        if self._packs_changed is not None:
            await self._packs_changed()
        return {"removed": str(arguments["name"])}

    async def _first_administrator(self) -> int:
        row = await self._stores.database.read(
            lambda db: db.execute(
                "SELECT min(u.id) FROM users u JOIN role_permissions p ON p.role_id = u.role_id "
                "WHERE p.permission = 'admin'"
            ).fetchone()
        )
        if row[0] is None:
            raise ControlError("there is no administrator yet: start the service once")
        return int(row[0])


COMMANDS: dict[str, Command] = {
    "key.create": Commands._key_create,  # noqa: SLF001 - the table belongs to the class
    "key.list": Commands._key_list,  # noqa: SLF001
    "key.revoke": Commands._key_revoke,  # noqa: SLF001
    "pack.install": Commands._pack_install,  # noqa: SLF001
    "pack.remove": Commands._pack_remove,  # noqa: SLF001
}
