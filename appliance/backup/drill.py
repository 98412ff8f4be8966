"""The restore drill: restores a backup into a folder of its own, boots the program on it and asks it things."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import sqlite_utils

from appliance.accounts.keys import Keyring, new_key
from appliance.accounts.secret import derive
from appliance.backup.copies import read_secret, verify_audit
from appliance.backup.errors import BackupError, refusal
from appliance.backup.keys import Identity
from appliance.backup.manifest import STORE, BackupManifest
from appliance.backup.restoring import RESTORED_CONFIGURATION, restore_folder
from appliance.backup.trial import Trial, booted
from appliance.clock import now_ms
from appliance.config import ConfigError, Settings, load_settings
from appliance.disk import work_folder
from appliance.packs.lock import hold_if_free
from appliance.packs.manifest import Manifest
from appliance.packs.store import PackStore
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS

FOLDER = ".drill-"
KEY_MS = 3_600_000
QUESTION = "Where is the backup of the box?"

_ADMINISTRATOR = (
    "SELECT min(u.id) FROM users u JOIN role_permissions p ON p.role_id = u.role_id "
    "WHERE p.permission = 'admin' AND (u.expires_at IS NULL OR u.expires_at > ?)"
)

# Held while a drill goes on: the next one clears up after those that were cut off.
LOCK = ".drill.lock"

# Is told in words what was found good.
Report = Callable[[str], None]


@contextlib.contextmanager
def one_drill(data_dir: Path) -> Iterator[None]:
    """Hold the lock of drills over ``data_dir``. Raises BackupError while another one goes on, OSError."""
    with hold_if_free(data_dir / LOCK) as held:
        if not held:
            raise BackupError("another drill is going on: wait until it is done", status=409)
        yield


def drill(
    settings: Settings, file: BinaryIO, identities: Sequence[Identity], report: Report
) -> BackupManifest:
    """Try a backup as if the box were lost; the running service is not touched.

    Restores it, verifies the audit log against the recorded head, boots the program over it on a loopback port
    with the smallest embedding model that is installed, and asks for health, models and an embedding with a key
    made for the purpose. The caller holds ``one_drill``. Raises BackupError that says what failed.
    """
    try:
        with work_folder(settings.data_dir, FOLDER) as work:
            return _drill(settings, file, identities, report, work)
    except OSError as error:
        raise refusal(error, "try the backup") from error


def _drill(
    settings: Settings, file: BinaryIO, identities: Sequence[Identity], report: Report, work: Path
) -> BackupManifest:
    box = work / "data"
    own = read_secret(settings.secret_path)
    restored = restore_folder(box, file, identities)
    manifest = restored.manifest
    report(
        f"restored: {len(manifest.files)} files, for schema {manifest.schema_version} on, every hash right"
    )
    secret = read_secret(box / "secret.key")
    if secret is None:
        if own is None:
            raise BackupError("neither the backup nor this box has the secret that belongs to it")
        secret = own
        (box / "secret.key").write_bytes(secret)
    audit = verify_audit(box, manifest, secret)
    if audit.broken is not None:
        raise BackupError(f"the restored audit log is not whole: {audit.broken.message}")
    report(f"audit log: whole, {audit.lines} lines, ends with the recorded head")
    _check_configuration(box, report)
    key = _temporary_key(box, secret)
    pack = link_smallest(PackStore(settings.packs_dir), box / "packs")
    with booted(box, work) as trial:
        report("booted: /health/ready answers")
        if key is None:
            report("the store has no administrator yet: nobody to log in as")
        else:
            _ask(trial, key, pack, report)
    return manifest


def _check_configuration(box: Path, report: Report) -> None:
    path = box / RESTORED_CONFIGURATION
    if not path.exists():
        return
    try:
        load_settings({}, {}, path)
    except ConfigError as error:
        raise BackupError(f"the restored configuration is not valid: {error.message}") from error
    report("configuration: valid")


def _temporary_key(box: Path, secret: bytes) -> str | None:
    """Make a key of an administrator in the restored store, which this program then has migrated."""
    database = Database.open(box / STORE, MIGRATIONS)
    key = new_key()
    keyring = Keyring(database, derive(secret, "api keys"))

    def insert(db: sqlite_utils.Database) -> bool:
        owner = db.execute(_ADMINISTRATOR, [now_ms()]).fetchone()[0]
        if owner is not None:
            keyring.insert(db, owner, "drill", key, now_ms() + KEY_MS)
        return owner is not None

    try:
        return key if database.write_sync(insert) else None
    finally:
        database.close()


def link_smallest(packs: PackStore, folder: Path) -> Manifest | None:
    """Link the smallest embedding pack into ``folder``; more would not fit beside the running service's."""
    whole = [(pack, pack.manifest) for pack in packs.list() if pack.manifest is not None]
    found = [each for each in whole if each[1].task == "embedding"]
    if not found:
        return None
    pack, manifest = min(found, key=lambda each: sum(file.size for file in each[1].file))
    folder.mkdir(exist_ok=True)
    (folder / manifest.name).symlink_to(pack.directory.resolve())
    return manifest


def _ask(trial: Trial, key: str, pack: Manifest | None, report: Report) -> None:
    models = [model["id"] for model in trial.ask("GET", "/v1/models", key)["data"]]
    report(f"logged in with a temporary key: {len(models)} models listed")
    if pack is None or pack.name not in models:
        report("no embedding model to ask: none is installed, or its router has another name")
        return
    answer = trial.ask("POST", "/v1/embeddings", key, {"model": pack.name, "input": QUESTION})
    vector = answer["data"][0]["embedding"]
    if not vector or not any(vector):
        raise BackupError(f"the restored box answered with an empty embedding ({pack.name})")
    report(f"embedding: {len(vector)} numbers from {pack.name}")
