"""The folder where backups lie: what is there, what is kept, and what an interrupted one left behind.

A backup is there when it has its name; it gets it when it is whole, checked and on disk. Names with a leading
dot are the folder's own: ``.lock``, and ``.making-*`` while a backup is made.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from appliance.backup.errors import BackupError, refusal
from appliance.clock import now_ms
from appliance.disk import remove, sync_directory
from appliance.packs.lock import hold_if_free

SUFFIX, ENCRYPTED_SUFFIX = ".tar.zst", ".tar.zst.age"
# However the days fall, so many of the newest stay.
NEWEST_KEPT = 3
# A clock that is set back by no more than this (by a zone, say) made nothing of a time that is to come.
CLOCK_MS = 86_400_000

_STAMP = "%Y%m%dT%H%M%S"
_NAME = re.compile(r"backup-(\d{8}T\d{6})(\d{3})Z-[0-9a-f]{6}\.tar\.zst(\.age)?")
_MAKING = ".making-"


class ShelvedBackup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup in the folder. ``created`` is UTC milliseconds, ``size`` bytes."""

    name: str
    created: int
    size: int
    encrypted: bool


class Shelf:
    """The folder ``path``. Its methods may block and are for threads. Several processes may use one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def backups(self) -> list[ShelvedBackup]:
        """Return the backups, newest first; none when the folder is not there. Raises BackupError."""
        try:
            found = [_shelved(entry) for entry in self.path.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise refusal(error, "list the backups") from error
        backups = [each for each in found if each is not None]
        return sorted(backups, key=lambda each: (each.created, each.name), reverse=True)

    def newest(self) -> ShelvedBackup | None:
        """Return the newest backup, None without any. Raises BackupError.

        One of a time to come is so only where there is no other: the clock was wrong when it was made.
        """
        backups, now = self.backups(), now_ms()
        return next(
            (each for each in backups if not is_to_come(each.created, now)), next(iter(backups), None)
        )

    def find(self, name_or_path: str) -> Path:
        """Return the file of a backup named as ``list`` does, or by its path. Raises BackupError."""
        if _NAME.fullmatch(name_or_path) and (self.path / name_or_path).is_file():
            return self.path / name_or_path
        path = Path(name_or_path)
        try:
            found = path.is_file()
        except OSError as error:
            raise BackupError(f"cannot read {name_or_path}: {error.strerror}") from error
        if not found:
            raise BackupError(f"there is no backup {name_or_path}", status=404)
        return path

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """Give an empty folder to make one backup in; clears up after earlier ones, and after this one.

        Raises BackupError when another is being made, OSError.
        """
        if not self.path.is_dir():
            self.path.mkdir(mode=0o700)
            sync_directory(self.path.parent)
        with hold_if_free(self.path / ".lock") as held:
            if not held:
                raise BackupError("another backup is being made; wait until it is done", status=409)
            self.sweep()
            work = self.path / f"{_MAKING}{secrets.token_hex(8)}"
            work.mkdir(mode=0o700)
            try:
                yield work
            finally:
                remove(work)

    def sweep(self) -> None:
        """Remove what interrupted backups left. The lock must be held."""
        for entry in self.path.iterdir():
            if entry.name.startswith(_MAKING):
                remove(entry)

    def put(self, file: Path, name: str) -> None:
        """Give a finished file its name here, on disk when this returns."""
        file.rename(self.path / name)
        sync_directory(self.path)

    def prune(self, made: str, daily: int, weekly: int) -> list[str]:
        """Remove the backups beyond those kept, and return their names; ``made``, just made, always stays.

        Those of later times were made by a clock that was set back since: they are kept by the same rule, but apart,
        for their days and weeks must not take the place of true ones.
        """
        backups = self.backups()
        at = next((each.created for each in backups if each.name == made), now_ms())
        later = [each for each in backups if each.created > at]
        gone = surplus(later, daily, weekly) + surplus(backups[len(later) :], daily, weekly)
        gone = [each for each in gone if each.name != made]
        for each in gone:
            remove(self.path / each.name)
        return [each.name for each in gone]


def is_to_come(time: int, now: int) -> bool:
    """Tell whether a time (both are UTC milliseconds) is one that nothing can have been made at."""
    return time > now + CLOCK_MS


def new_name(created: int, *, encrypted: bool) -> str:
    """Return the name of a backup made at ``created``, UTC milliseconds."""
    time = datetime.fromtimestamp(created // 1000, UTC).strftime(_STAMP)
    suffix = ENCRYPTED_SUFFIX if encrypted else SUFFIX
    return f"backup-{time}{created % 1000:03}Z-{secrets.token_hex(3)}{suffix}"


def surplus(backups: Sequence[ShelvedBackup], daily: int, weekly: int) -> list[ShelvedBackup]:
    """Return which of ``backups`` (newest first) go: all but the newest few, the newest of each of the last
    ``daily`` days that have one, and of each of the last ``weekly`` weeks (UTC). Both 0 keep all.
    """
    if not daily and not weekly:
        return []
    kept = {each.name for each in backups[:NEWEST_KEPT]}
    days: set[str] = set()
    weeks: set[str] = set()
    for each in backups:
        when = datetime.fromtimestamp(each.created / 1000, UTC)
        for periods, period, most in ((days, f"{when:%F}", daily), (weeks, f"{when:%G-%V}", weekly)):
            if period not in periods and len(periods) < most:
                periods.add(period)
                kept.add(each.name)
    return [each for each in backups if each.name not in kept]


def _shelved(entry: Path) -> ShelvedBackup | None:
    """Return what a name says, None for the name of no backup."""
    match = _NAME.fullmatch(entry.name)
    if match is None or entry.is_symlink() or not entry.is_file():
        return None
    try:
        time = datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    except ValueError:  # digits that are no date
        return None
    return ShelvedBackup(
        name=entry.name,
        created=int(time.timestamp()) * 1000 + int(match[2]),
        size=entry.stat().st_size,
        encrypted=match[3] is not None,
    )
