"""A backup by the settings, off the event loop: what the running service does when it is asked for one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from appliance.backup.creation import Created, Source, create_backup
from appliance.backup.keys import parse_recipient
from appliance.backup.shelf import Shelf
from appliance.config import Settings, loaded_file
from appliance.packs.store import PackStore
from appliance.storage.database import Database

T = TypeVar("T")


async def make_backup(
    settings: Settings,
    writers: Sequence[Database],
    packs: PackStore,
    secret: bytes,
    *,
    encrypt_to: str | None = None,
) -> Created:
    """Make a backup and keep by the settings; ``encrypt_to`` is a public key in place of the settings' one.

    ``writers`` are all stores that this process has open for writing. Raises BackupError.
    """
    text = encrypt_to or settings.backup_recipient
    recipient = parse_recipient(text) if text else None
    source = Source(
        data_dir=settings.data_dir, writers=writers, packs=packs, secret=secret, configuration=loaded_file()
    )
    shelf = Shelf(settings.backups_path)
    daily, weekly = settings.backup_keep_daily, settings.backup_keep_weekly
    return await in_background(lambda: create_backup(source, shelf, recipient, daily=daily, weekly=weekly))


async def in_background(work: Callable[[], T]) -> T:
    """Run long work in a thread of its own, which does not keep the process alive.

    Of the same priority as the others: one of a lower one would be kept from running while it holds the GIL.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(set_it: Callable[[], None]) -> None:
        # The loop may be gone, and the waiter too.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if done.done() else set_it())

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            failure = error
            finish(lambda: done.set_exception(failure))
        else:
            finish(lambda: done.set_result(result))

    threading.Thread(target=run, name="backup", daemon=True).start()
    return await done
