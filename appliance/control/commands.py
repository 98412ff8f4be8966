"""The commands that write, once: run by the service for its socket, or by a command line without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from appliance.accounts.errors import AccountError
from appliance.accounts.issued_keys import NAME_LENGTH, IssuedKeys
from appliance.accounts.setup import SetupDoneError
from appliance.accounts.users import ALL, Users
from appliance.audit.chain import parse_head
from appliance.audit.lines import Filter, list_lines
from appliance.audit.log import COMMAND_LINE
from appliance.backup.service import make_backup
from appliance.bundles import trial_numbers
from appliance.clock import now_ms
from appliance.control.errors import ControlError
from appliance.control.pack_trials import Left
from appliance.control.stores import Stores
from appliance.jobs.runner import JobRunner
from appliance.network.download import shown_url
from appliance.releases.switching import ServiceState
from appliance.signing.signatures import parse_signature
from appliance.signing.trust import trust_store
from appliance.tls.server import renew

# Called with (done, total) while a command works.
Progress = Callable[[int, int], None]
Command = Callable[["Commands", dict[str, Any], Progress], Awaitable[Any]]


class Commands:
    """The commands over open stores; ``packs_changed`` is awaited after a pack was removed."""

    def __init__(
        self,
        stores: Stores,
        jobs: JobRunner,
        packs_changed: Callable[[], Awaitable[None]] | None = None,
        state: Callable[[], ServiceState] | None = None,
        pack_outcome: Callable[[str, str], Awaitable[Left | None]] | None = None,
    ) -> None:
        self._stores = stores
        self._jobs = jobs
        self._packs_changed = packs_changed
        self._state = state
        self._pack_outcome = pack_outcome
        # What is for the moment only makes sense in a service.
        self._serves = packs_changed is not None

    async def run(self, name: str, arguments: dict[str, Any], progress: Progress) -> Any:
        """Run one command and return its JSON-able result. Raises ApplianceError of its room."""
        command = COMMANDS.get(name)
        if command is None:
            raise ControlError(f"unknown command {name!r}: is the service of another version?")
        if name not in READS and self._state is not None and self._state().closed:
            raise ControlError("the appliance is being upgraded: it takes writes again in a moment")
        return await command(self, arguments, progress)

    async def _key_create(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        owner = await self._user(arguments)
        if owner is None:
            owner = await self._first_administrator()
        name, expires_at = str(arguments["name"]).strip(), arguments.get("expires_at")
        if not 0 < len(name) <= NAME_LENGTH:
            raise ControlError(f"a key needs a name of 1 to {NAME_LENGTH} characters")
        created = await self._keys().create(COMMAND_LINE, owner, name, expires_at)
        return msgspec.to_builtins(created)

    async def _key_list(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        owner = await self._user(arguments)
        return msgspec.to_builtins(await self._keys().list("ORDER BY k.id", owner))

    async def _key_revoke(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        try:
            await self._keys().delete(COMMAND_LINE, int(arguments["id"]))
        except AccountError:
            raise ControlError(f"no key {arguments['id']}") from None
        return {"revoked": int(arguments["id"])}

    async def _user_list(self, _arguments: dict[str, Any], _progress: Progress) -> Any:
        return msgspec.to_builtins(await self._users().list(ALL))

    async def _user_password(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        email, password = str(arguments["email"]), str(arguments["password"])
        return {"id": await self._users().reset_password(COMMAND_LINE, email, password)}

    def _users(self) -> Users:
        return Users(self._stores.database, self._stores.audit)

    def _keys(self) -> IssuedKeys:
        stores = self._stores
        return IssuedKeys(stores.database, stores.keyring, stores.audit, stores.settings.key_max_days)

    async def _user(self, arguments: dict[str, Any]) -> int | None:
        """Return the user that a command names by e-mail or by id; None when it names none."""
        email = arguments.get("email")
        if email is None:
            return arguments.get("user_id")
        row = await self._stores.database.read(
            lambda db: db.execute("SELECT id FROM users WHERE email = ?", [str(email)]).fetchone()
        )
        if row is None:
            raise ControlError(f"there is no user {email}")
        return int(row[0])

    async def _pack_install(self, arguments: dict[str, Any], progress: Progress) -> Any:
        source = str(arguments["source"])
        allow_unsigned = arguments.get("allow_unsigned") is True
        shown = shown_url(source) + (" (also without a signature)" if allow_unsigned else "")
        # Before the work: the job may outlive this command.
        await self._audited("pack.install", shown)
        job = await self._jobs.submit("pack-install", {"source": source, "allow_unsigned": allow_unsigned})
        installed = await self._jobs.wait(job, progress)
        await self._pack_settled("new", str(installed["name"]), str(installed["version"]))
        return installed

    async def _pack_rollback(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        name, packs = str(arguments["name"]), self._stores.packs
        # Before the work, as every change; on a full disk nothing is changed then. What is refused is no change.
        if await asyncio.to_thread(packs.former, name) is not None:
            await self._audited("pack.rollback", name)
        manifest = await asyncio.to_thread(packs.go_back, name)
        if self._packs_changed is not None:
            await self._packs_changed()
        await self._pack_settled("former", name, manifest.version)
        return {"name": name, "version": manifest.version}

    async def _pack_settled(self, which: str, name: str, version: str) -> None:
        """Wait until it is known whether a version that came in loads. Raises ControlError when it does not."""
        left = None if self._pack_outcome is None else await self._pack_outcome(name, version)
        if left is not None and left.former_returned:
            raise ControlError(
                f"the {which} version of {name} cannot be loaded ({left.reason}): the one before serves again"
            )
        if left is not None:
            raise ControlError(
                f"{name} is installed, but cannot be loaded ({left.reason}): each start tries again, and so does "
                "importing it once more"
            )

    async def _pack_remove(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        name, packs = str(arguments["name"]), self._stores.packs
        await asyncio.to_thread(packs.get, name)
        await self._audited("pack.remove", name)
        await asyncio.to_thread(packs.remove, name)
        await asyncio.to_thread(trial_numbers.forget, packs, name)
        if self._packs_changed is not None:
            await self._packs_changed()
        return {"removed": name}

    async def _setup_check(self, _arguments: dict[str, Any], _progress: Progress) -> Any:
        if not await asyncio.to_thread(self._stores.setup.needed):
            raise SetupDoneError
        return {}

    async def _setup_make(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        email, password = str(arguments["email"]), str(arguments["password"])
        return msgspec.to_builtins(await self._stores.setup.make(email, password, COMMAND_LINE))

    async def _setup_code(self, _arguments: dict[str, Any], _progress: Progress) -> Any:
        if not self._serves:
            raise ControlError("the service does not run: start it, and it shows a code")
        return {"code": await asyncio.to_thread(self._stores.setup.new_code)}

    async def _tls_renew(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        authority, settings = arguments.get("authority") is True, self._stores.settings
        if settings.tls != "auto":
            raise ControlError('the box makes its own certificates only with tls = "auto"')
        await self._audited("tls.renew", "authority" if authority else "certificate")
        return {"fingerprint": await asyncio.to_thread(renew, settings, authority=authority)}

    async def _trust_import(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        what = str(arguments["name"])
        signature = parse_signature(str(arguments["signature"]).encode(), f"the signature of {what}")
        data = str(arguments["document"]).encode()
        trust = trust_store(self._stores.settings)
        document = await asyncio.to_thread(trust.apply, data, signature, what)
        await self._audited("trust.import", f"list {document.sequence} by key {signature.key_id}")
        return {
            "sequence": document.sequence,
            "signed_by": signature.key_id,
            "revoked": [entry.key_id for entry in document.revoked],
            "trusted": [key.id for key in document.new_keys()],
        }

    async def _audit_list(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        wanted = msgspec.convert(arguments, Filter)
        return msgspec.to_builtins(await self._stores.database.read(lambda db: list_lines(db, wanted)))

    async def _audit_verify(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        text = arguments.get("head")
        recorded = None if text is None else parse_head(str(text))
        return (await self._stores.audit.verify(self._stores.database, recorded)).shown()

    async def _backup_create(self, arguments: dict[str, Any], _progress: Progress) -> Any:
        stores = self._stores
        made = await make_backup(
            stores.settings,
            [stores.database],
            stores.packs,
            stores.secret,
            encrypt_to=arguments.get("encrypt_to"),
        )
        await self._audited("backup.create", made.name)
        return msgspec.to_builtins(made)

    async def _service_state(self, _arguments: dict[str, Any], _progress: Progress) -> Any:
        if self._state is None:
            raise ControlError("the service does not run")
        return msgspec.to_builtins(self._state())

    async def _audited(self, action: str, target: str) -> None:
        audit = self._stores.audit
        await self._stores.database.write(lambda db: audit.append(db, COMMAND_LINE, action, target))

    async def _first_administrator(self) -> int:
        row = await self._stores.database.read(
            lambda db: db.execute(
                "SELECT u.id FROM users u JOIN role_permissions p ON p.role_id = u.role_id "
                # The key of one whose account has expired would open nothing.
                "WHERE p.permission = 'admin' ORDER BY ifnull(u.expires_at <= ?, 0), u.id LIMIT 1",
                [now_ms()],
            ).fetchone()
        )
        if row is None:
            raise ControlError("there is no administrator yet: start the service once")
        return int(row[0])


# What a release on trial answers: what it wrote could not be kept.
READS = frozenset({"audit.list", "audit.verify", "key.list", "service.state", "setup.check", "user.list"})

COMMANDS: dict[str, Command] = {
    "audit.list": Commands._audit_list,  # noqa: SLF001 - the table belongs to the class
    "audit.verify": Commands._audit_verify,  # noqa: SLF001
    "backup.create": Commands._backup_create,  # noqa: SLF001
    "key.create": Commands._key_create,  # noqa: SLF001 - the table belongs to the class
    "key.list": Commands._key_list,  # noqa: SLF001
    "key.revoke": Commands._key_revoke,  # noqa: SLF001
    "pack.install": Commands._pack_install,  # noqa: SLF001
    "pack.remove": Commands._pack_remove,  # noqa: SLF001
    "pack.rollback": Commands._pack_rollback,  # noqa: SLF001
    "service.state": Commands._service_state,  # noqa: SLF001
    "setup.check": Commands._setup_check,  # noqa: SLF001
    "setup.code": Commands._setup_code,  # noqa: SLF001
    "setup.make": Commands._setup_make,  # noqa: SLF001
    "tls.renew": Commands._tls_renew,  # noqa: SLF001
    "trust.import": Commands._trust_import,  # noqa: SLF001
    "user.list": Commands._user_list,  # noqa: SLF001
    "user.password": Commands._user_password,  # noqa: SLF001
}
