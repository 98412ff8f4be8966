"""The stores that the service, or a command without it, opens: under one exclusive lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.accounts.bootstrap import bootstrap, prepare
from appliance.accounts.errors import AccountError
from appliance.accounts.keys import Keyring
from appliance.accounts.secret import derive, has_secret, load_secret
from appliance.accounts.setup import SetupCodes
from appliance.audit.log import AuditLog
from appliance.config import Settings
from appliance.control.errors import ControlError
from appliance.packs.store import PackStore
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS


@dataclass(frozen=True)
class Stores:
    """What is written: all records in the database, packs in their folder. Keys derive from ``secret``."""

    settings: Settings
    database: Database
    keyring: Keyring
    audit: AuditLog
    secret: bytes
    packs: PackStore
    setup: SetupCodes

    def make_first_key(self) -> str | None:
        """Make the first administrator where its key is to be printed; return that key, which is kept nowhere.

        None where the box has an administrator, or is to have its first one otherwise. Raises StorageError.
        """
        if self.settings.first_boot == "code":
            return None
        return bootstrap(self.database, self.keyring, self.settings.bootstrap_key_file, self.audit)


@contextmanager
def open_stores(settings: Settings, *, first_boot: bool = False) -> Iterator[Stores]:
    """Take the lock, open everything, close at the end.

    ``first_boot`` makes the first administrator of a key file if needed; one whose key is to be printed is made by
    ``Stores.make_first_key``, once the service can show it.

    Raises ControlError when another process holds the lock, StorageError or AccountError otherwise.
    """
    # Everything made from here on is the owner's only, the database and the control socket too.
    os.umask(0o077)
    make_directories(settings)
    with exclusive_lock(settings.lock_path):
        database = Database.open(settings.database_path, MIGRATIONS)
        try:
            check_secret(database, settings)
            secret = load_secret(settings.secret_path)
            keyring = Keyring(database, derive(secret, "api keys"))
            audit = AuditLog(derive(secret, "audit log"))
            if first_boot and settings.bootstrap_key_file is not None:
                bootstrap(database, keyring, settings.bootstrap_key_file, audit)
            elif first_boot and settings.first_boot == "key":
                prepare(database)
            packs = PackStore(settings.packs_dir)
            packs.sweep()
            setup = SetupCodes(database, keyring, audit)
            yield Stores(settings, database, keyring, audit, secret, packs, setup)
        finally:
            database.close()


def check_secret(database: Database, settings: Settings) -> None:
    """Refuse a secret that is not this store's. Raises AccountError.

    A new one for a store that has keys would make all of them invalid; of two that differ, one would.
    """
    path, own = settings.secret_path, settings.data_dir / "secret.key"
    if not has_secret(path):
        if path != own:
            raise AccountError(f"secret_file: there is no {path}")
        if database.read_sync(lambda db: db.execute("SELECT 1 FROM keys").fetchone()):
            raise AccountError(
                f"{path} is missing, without which no key is valid: restore it from the backup"
            )
    elif path != own and own.exists() and own.read_bytes() != load_secret(path):
        raise AccountError(
            f"{path} and {own} are two different secrets: keep the one that this store's keys were made with"
        )


def make_directories(settings: Settings) -> None:
    """Make the data directory, readable by its owner only. Raises ControlError when it cannot be made."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if settings.data_dir.stat().st_uid == os.geteuid():
            settings.data_dir.chmod(0o700)
        settings.packs_dir.mkdir(exist_ok=True)
    except OSError as error:
        raise ControlError(f"cannot make the data directory {settings.data_dir}: {error.strerror}") from error


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the store's lock; the kernel frees it when this process ends. Raises ControlError when taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ControlError(
                f"another process uses {path.parent}: is the service running with another control socket?"
            ) from None
        # A restore puts another directory in this one's place: the lock must be the one that stands there now.
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise ControlError(f"{path.parent} was replaced just now: try again")
        yield
    finally:
        os.close(descriptor)
