"""The installed model packs: one directory each under ``<data>/packs/``.

Names with a leading dot are the store's own: ``.lock``, ``.verified`` (hash cache), and what an
interrupted change leaves behind until the next sweep: ``.staging-*`` (a pack being written, or the
old one after a swap), ``.old-NAME`` (the old one, where names cannot be swapped), ``.removed-*``.
``.previous-NAME`` is a pack that was replaced and is kept until the new one has shown that it loads; then it is
``.former-NAME``, for whoever wants to go back. ``.attempts-NAME`` and ``.number-NAME`` are notes of such a trial
(``attempts``, ``bundles.trial_numbers``).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.disk import (
    REMOVED,
    copy_by_names,
    drop,
    free_bytes,
    own_bytes,
    put_back,
    remove,
    replace,
    replace_by_renames,
    sync_directory,
)
from appliance.packs import attempts
from appliance.packs.archive import read_archive, write_archive
from appliance.packs.directory import check_files, check_unlisted, read_directory
from appliance.packs.errors import PackCancelledError, PackError, PackNotFoundError, PackSpaceError, refusal
from appliance.packs.hash_cache import HashCache, fingerprint
from appliance.packs.lock import hold, hold_if_free
from appliance.packs.manifest import MANIFEST_NAME, Manifest, read_manifest
from appliance.packs.meter import Cancelled, Meter, Progress
from appliance.packs.staging import Discard, Sink, Staging, checked, open_plain, read_chunks

# Left free for the stores and the journal when a pack is installed.
RESERVE_BYTES = 256 << 20

# Checks a source whole and hands its files to the sink.
Reader = Callable[[Path, Sink, Meter], Manifest]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BLOCK = 4096
LOCK = ".lock"
_PREVIOUS = ".previous-"
_FORMER = ".former-"
KEPT_VERSIONS = (_PREVIOUS, _FORMER)


class InstalledPack(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of the store. ``problem`` says in words why it is no whole pack; then ``manifest`` is None."""

    name: str
    directory: Path
    manifest: Manifest | None
    problem: str | None


class PackStore:
    """The packs in ``directory``. Several processes may use one store: changes are locked and atomic.

    Every method may block for long and is for threads, not for an event loop.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._lock = directory / LOCK

    def sweep(self) -> None:
        """Clear up after an interrupted change, unless a change is going on. Call it at start."""
        if not self.path.is_dir():
            return
        try:
            with hold_if_free(self._lock) as held:
                if held:
                    self._sweep()
        except OSError as error:
            raise refusal(error, "clear up the packs") from error

    def list(self) -> tuple[InstalledPack, ...]:
        """Return every pack by name, broken ones included (sizes are checked, hashes are not)."""
        try:
            names = sorted(
                entry.name for entry in self.path.iterdir() if entry.is_dir() and entry.name[0] != "."
            )
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise refusal(error, "list the packs") from error
        return tuple(self._look(name) for name in names)

    def get(self, name: str) -> InstalledPack:
        """Return the pack ``name``, broken or not. Raises PackNotFoundError."""
        try:
            found = _NAME.fullmatch(name) is not None and (self.path / name).is_dir()
        except OSError as error:
            raise refusal(error, f"read the pack {name}") from error
        if not found:
            raise PackNotFoundError(name)
        return self._look(name)

    def directory(self, name: str) -> Path:
        """Return where the pack ``name`` lies. Raises PackNotFoundError; PackError when it is broken."""
        return self._whole(name)[0]

    def verify(
        self,
        name: str,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        *,
        cached: bool = False,
    ) -> Manifest:
        """Compare every file of an installed pack with its manifest.

        ``cached`` skips files that were hashed before and did not change since. Raises
        PackNotFoundError; PackError that names the first wrong file; PackCancelledError.
        """
        directory, manifest = self._whole(name)
        cache = HashCache(self.path / ".verified")
        meter = Meter(progress, cancelled)
        meter.expect(sum(entry.size for entry in manifest.file))
        try:
            check_unlisted(directory, manifest)
            for entry in manifest.file:
                with open_plain(directory / entry.path) as file:
                    status = os.fstat(file.fileno())
                    if cached and cache.holds(f"{name}/{entry.path}", status, entry.sha256):
                        meter.advance(entry.size)
                        continue
                    for _ in checked(entry, read_chunks(file.read, entry.size + 1), meter.advance):
                        pass
                    if fingerprint(os.fstat(file.fileno())) == fingerprint(status):
                        cache.add(f"{name}/{entry.path}", status, entry.sha256)
            cache.save({path.name for path in self.path.iterdir()})
        except PackCancelledError:
            raise
        except PackError as error:
            raise PackError(f"pack {name}: {error.message}") from error
        except OSError as error:
            raise refusal(error, f"read the pack {name}") from error
        return manifest

    def install(
        self,
        source: Path,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        *,
        reader: Reader | None = None,
        accept: Callable[[Manifest], bool] | None = None,
        keep_previous: bool = False,
    ) -> Manifest:
        """Install an archive or an unpacked pack; a pack of the same name is replaced in one step.

        When this returns the pack is whole and on disk. When it raises (PackError and its kinds), or
        the process dies at any instant, the store holds what it held before. Installing the same
        source again is harmless.

        Where the source comes from is not looked at: ``appliance.bundles.installation`` does that, and
        passes the ``reader`` of a signed bundle. ``accept`` is called when the new pack is whole and on
        disk, right before it takes the old one's place; it may raise to refuse it, and tells whether the old one
        is worth keeping. ``keep_previous`` keeps another version that is replaced, for ``put_back_previous`` or
        ``drop_previous``.
        """
        meter = Meter(progress, cancelled)
        try:
            self._create()
            with hold(self._lock, meter):
                self._sweep()
                return self._install(source, meter, reader or read_pack, accept, keep_previous)
        except OSError as error:
            raise refusal(error, f"install {source.name}") from error

    def remove(self, name: str) -> None:
        """Remove a pack, whole or broken. Raises PackNotFoundError."""
        try:
            self.get(name)
            with hold(self._lock, Meter()):
                self._sweep()
                self.get(name)
                drop(self.path / name)
                for kept in KEPT_VERSIONS:
                    self._drop(self.path / f"{kept}{name}")
        except OSError as error:
            raise refusal(error, f"remove the pack {name}") from error

    def archive(
        self,
        name: str,
        target: Path,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> Manifest:
        """Write the installed pack ``name`` as the archive ``target``. Raises PackError."""
        return write_archive(self._whole(name)[0], target, progress, cancelled)

    def is_current(self, source: Path) -> bool:
        """Tell whether the pack in the directory ``source`` is installed, whole (by the hash cache) and the same."""
        try:
            wanted = read_manifest(source)
            installed = self.path / wanted.name / MANIFEST_NAME
            if installed.read_bytes() != (source / MANIFEST_NAME).read_bytes():
                return False
            self.verify(wanted.name, cached=True)
        except (PackError, OSError):
            return False
        return True

    def _whole(self, name: str) -> tuple[Path, Manifest]:
        pack = self.get(name)
        if pack.manifest is None:
            raise PackError(f"pack {name} is broken: {pack.problem}", status=500)
        return pack.directory, pack.manifest

    def _look(self, entry: str, name: str = "") -> InstalledPack:
        """Return what is in the directory ``entry``, which holds the pack ``name`` where that is not the same."""
        directory, name = self.path / entry, name or entry
        try:
            manifest = read_manifest(directory)
            check_files(directory, manifest)
        except (PackError, OSError) as error:
            problem = (error if isinstance(error, PackError) else refusal(error, "read it")).message
            return InstalledPack(name=name, directory=directory, manifest=None, problem=problem)
        if manifest.name != name:
            problem = f"{MANIFEST_NAME} says that this is {manifest.name!r}"
            return InstalledPack(name=name, directory=directory, manifest=None, problem=problem)
        return InstalledPack(name=name, directory=directory, manifest=manifest, problem=None)

    def _install(
        self,
        source: Path,
        meter: Meter,
        reader: Reader,
        accept: Callable[[Manifest], bool] | None,
        keep_previous: bool,
    ) -> Manifest:
        staging = self.path / f".staging-{secrets.token_hex(8)}"
        try:
            sink = Staging(staging, self._admit)
            manifest = reader(source, sink, meter)
            sink.sync()
            meter.check()
            worth_keeping = accept is None or accept(manifest)
            if keep_previous:
                self._keep_previous(manifest, replaced=worth_keeping)
            replace(staging, self.path / manifest.name, self.path / f".old-{manifest.name}")
        except BaseException:
            remove(staging)
            raise
        return manifest

    def previous(self) -> tuple[str, ...]:
        """Return the names of packs whose version of before is still kept."""
        if not self.path.is_dir():
            return ()
        return tuple(sorted(path.name.removeprefix(_PREVIOUS) for path in self.path.glob(f"{_PREVIOUS}*")))

    def drop_previous(self, name: str) -> None:
        """Remove the kept version of before: the pack is gone."""
        with hold(self._lock, Meter()):
            self._drop(self.path / f"{_PREVIOUS}{name}")

    def settle_previous(self, name: str) -> None:
        """Make the kept version of before the one for ``go_back``, in place of an older one: the new one works."""
        try:
            with hold(self._lock, Meter()):
                kept, former = self.path / f"{_PREVIOUS}{name}", self.path / f"{_FORMER}{name}"
                if kept.is_dir() and self._look(kept.name, name).manifest == self._look(name).manifest:
                    self._drop(kept)  # the change was interrupted before it began
                elif kept.is_dir():
                    # Not in one step: without an older one there is still this, to be settled again.
                    self._drop(former)
                    kept.rename(former)
                    sync_directory(self.path)
        except OSError as error:
            raise refusal(error, f"keep the former version of {name}") from error

    def former(self, name: str) -> Manifest | None:
        """Return the manifest of the version that ``go_back`` leads to; None without one, or one that is not whole."""
        directory = self.path / f"{_FORMER}{name}"
        return self._look(directory.name, name).manifest if directory.is_dir() else None

    def go_back(self, name: str) -> Manifest:
        """Put the former version in place of the present one, which is kept until the former has shown that it loads.

        Raises PackNotFoundError; PackError when there is none, or when it is not yet decided which one stays.
        """
        try:
            with hold(self._lock, Meter()):
                self._sweep()
                self.get(name)
                if (self.path / f"{_PREVIOUS}{name}").exists():
                    raise PackError(f"{name} is being tried: wait until it is loaded", status=409)
                former = self.former(name)
                if former is None:
                    raise PackError(f"there is no former version of {name} to go back to", status=409)
                self._keep_previous(former)
                replace(self.path / f"{_FORMER}{name}", self.path / name, self.path / f".old-{name}")
        except OSError as error:
            raise refusal(error, f"go back to the former version of {name}") from error
        return former

    def put_back_previous(self, name: str) -> None:
        """Put the kept version in place of the new one, which does not work. Raises PackError."""
        try:
            with hold(self._lock, Meter()):
                kept = self.path / f"{_PREVIOUS}{name}"
                if kept.is_dir() and os.path.lexists(self.path / name):
                    # Not swapped: what does not work must never, for an instant, have the name of what does.
                    replace_by_renames(kept, self.path / name, self.path / f".old-{name}")
                elif kept.is_dir():
                    kept.rename(self.path / name)
                    sync_directory(self.path)
        except OSError as error:
            raise refusal(error, f"go back to the former version of {name}") from error

    def _keep_previous(self, manifest: Manifest, *, replaced: bool = True) -> None:
        """Give the installed version a second name, file by file, when it is whole and another one.

        Not without ``replaced``: then it is no way back.
        """
        kept = self.path / f"{_PREVIOUS}{manifest.name}"
        old = self.path / manifest.name
        # What ended the service was another version.
        attempts.clear(self.path, manifest.name)
        if (
            not replaced
            or kept.exists()
            or not old.is_dir()
            or self._look(manifest.name).manifest in (None, manifest)
        ):
            return  # the version that is known to work stays the one to go back to
        staging = self.path / f".staging-{secrets.token_hex(8)}"
        copy_by_names(old, staging)
        staging.rename(kept)
        sync_directory(self.path)

    def _drop(self, path: Path) -> None:
        if path.exists():
            drop(path)

    def _admit(self, manifest: Manifest) -> None:
        needed = RESERVE_BYTES + sum(-(-entry.size // _BLOCK) * _BLOCK for entry in manifest.file)
        free = free_bytes(self.path)
        former = self.path / f"{_FORMER}{manifest.name}"
        if free < needed <= free + own_bytes(former):
            # A way back to a version before the last is worth less than the new one.
            self._drop(former)
            free = free_bytes(self.path)
        if free < needed:
            raise PackSpaceError(
                f"{manifest.name} needs {needed >> 20} MiB free on the disk of {self.path} "
                f"(with {RESERVE_BYTES >> 20} MiB to spare); {free >> 20} MiB are free"
            )

    def _create(self) -> None:
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            sync_directory(self.path.parent)

    def _sweep(self) -> None:
        for path in self.path.iterdir():
            if path.name.startswith((".staging-", REMOVED, ".verified.")):
                remove(path)
            elif path.name.startswith(".old-"):
                put_back(path, self.path / path.name.removeprefix(".old-"))


def read_pack(source: Path, sink: Sink, meter: Meter) -> Manifest:
    """Check the archive or directory ``source`` whole and hand its files to ``sink``.

    Raises PackError, PackCancelledError, OSError.
    """
    return (read_directory if source.is_dir() else read_archive)(source, sink, meter)


def check_pack(
    source: Path,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    *,
    reader: Reader | None = None,
) -> Manifest:
    """Check an archive or an unpacked pack without installing it. Raises PackError."""
    try:
        return (reader or read_pack)(source, Discard(lambda _: None), Meter(progress, cancelled))
    except OSError as error:
        raise refusal(error, f"read {source.name}") from error
