"""Checks that a backup can be made here and opened again."""

from __future__ import annotations

import msgspec

from appliance.backup.creation import Source, create_backup
from appliance.backup.keys import new_identity
from appliance.backup.restoring import restore_folder
from appliance.backup.shelf import Shelf
from appliance.config import Settings
from appliance.control.stores import open_stores
from appliance.smoke.registry import Ground, SmokeError


def backup_and_restore(ground: Ground) -> str:
    """Back up a new store, encrypted, and restore it into a folder."""
    settings = msgspec.structs.replace(Settings(), data_dir=ground.work / "box")
    operator = new_identity()
    with open_stores(settings) as stores:
        source = Source(
            data_dir=settings.data_dir,
            writers=[stores.database],
            packs=stores.packs,
            secret=stores.secret,
            configuration=None,
        )
        shelf = Shelf(ground.work / "backups")
        made = create_backup(source, shelf, operator.public_key(), daily=1, weekly=0)
    with (shelf.path / made.name).open("rb") as file:
        restored = restore_folder(ground.work / "restored", file, [operator])
    if restored.audit is None or not restored.audit["whole"]:
        raise SmokeError("the restored audit log is not whole")
    return f"{made.size} bytes, encrypted"
