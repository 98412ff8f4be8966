"""Where the releases lie: ``ROOT/releases/<sequence>-<version>/`` and two links to one of them.

``current`` is the release that the service runs. ``keeper`` is the one whose program finishes or undoes a
switch that was interrupted: it follows ``current`` only when the new release has shown that it works.
Beside each tree lies its manifest, ``<sequence>-<version>.json``, in the bytes that were signed. All of it
belongs to root; the service reads it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from appliance.bundles.errors import BundleError
from appliance.bundles.manifest import BundleManifest, encode_manifest, parse_manifest
from appliance.disk import remove, sync_directory, write_whole
from appliance.releases.errors import ReleaseError

PROGRAM = "appliance"
STAGING = ".staging-"
_REMOVED = ".removed-"


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release on the disk, whole. ``schema`` is the schema of the stores that its program makes."""

    directory: Path
    manifest: BundleManifest

    @property
    def name(self) -> str:
        """What its directory is called."""
        return self.directory.name

    @property
    def sequence(self) -> int:
        """The number that only grows."""
        return self.manifest.sequence

    @property
    def program(self) -> Path:
        """Its executable."""
        return self.directory / PROGRAM

    def __str__(self) -> str:
        return f"{self.manifest.version} (number {self.sequence})"


class Layout:
    """The releases below ``root``. Reading is for anybody, changing for root under the driver's lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.releases = root / "releases"
        self.current_link = root / "current"
        self.keeper_link = root / "keeper"
        self.journal_path = root / "upgrade.json"
        self.lock_path = root / "upgrade.lock"

    def directory(self, manifest: BundleManifest) -> Path:
        """Return where the release of a manifest belongs."""
        return self.releases / f"{manifest.sequence}-{manifest.version}"

    def all(self) -> list[Release]:
        """Return the releases on this disk, oldest first. Raises ReleaseError for a damaged manifest."""
        if not self.releases.is_dir():
            return []
        found = [
            self.get(entry.name)
            for entry in self.releases.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        ]
        return sorted(found, key=lambda release: release.sequence)

    def get(self, name: str) -> Release:
        """Return a release by the name of its directory. Raises ReleaseError."""
        directory = self.releases / name
        path = self.releases / f"{name}.json"
        try:
            manifest = parse_manifest(path.read_bytes())
        except (OSError, BundleError) as error:
            raise ReleaseError(f"the release {name} cannot be used: {path} is missing or damaged") from error
        if self.directory(manifest) != directory or not directory.is_dir():
            raise ReleaseError(f"the release {name} cannot be used: it is not what {path} says")
        return Release(directory=directory, manifest=manifest)

    def current(self) -> Release:
        """Return the release that the service runs. Raises ReleaseError when none is installed."""
        return self.get(self.require_installed())

    def require_installed(self) -> str:
        """Return the name of the current release, before anything is made or locked where there is none.

        Raises ReleaseError where ``install.sh`` never was.
        """
        try:
            return self.current_link.readlink().name
        except OSError:
            raise ReleaseError(
                f"no release is installed in {self.root}: this is for boxes that install.sh made"
            ) from None

    def running(self) -> BundleManifest | None:
        """Return the manifest of the current release, None where none is installed."""
        try:
            return self.current().manifest
        except ReleaseError:
            return None

    def previous(self, current: Release) -> Release:
        """Return the release to go back to. Raises ReleaseError when there is none."""
        older = [release for release in self.all() if release.sequence < current.sequence]
        if not older:
            raise ReleaseError(f"there is no release to go back to: none on this box is older than {current}")
        return older[-1]

    def point(self, link: Path, release: Release) -> None:
        """Let ``link`` lead to a release, in one step; on disk when this returns."""
        temporary = self.root / f".{link.name}.{secrets.token_hex(4)}.new"
        temporary.symlink_to(Path("releases") / release.name)
        temporary.rename(link)
        sync_directory(self.root)

    def add(self, staged: Path, manifest: BundleManifest) -> Release:
        """Give a staged tree its name. The manifest comes first: a tree without one is no release."""
        directory = self.directory(manifest)
        write_whole(self.releases / f"{directory.name}.json", encode_manifest(manifest), 0o644)
        staged.rename(directory)
        sync_directory(self.releases)
        return Release(directory=directory, manifest=manifest)

    def remove(self, release: Release) -> None:
        """Remove a release; it loses its name first: half of it must not pass for a whole one."""
        gone = self.releases / f"{_REMOVED}{secrets.token_hex(4)}"
        release.directory.rename(gone)
        (self.releases / f"{release.name}.json").unlink(missing_ok=True)
        sync_directory(self.releases)
        remove(gone)

    def keep(self, *kept: Release) -> list[str]:
        """Remove all other releases, and what an interrupted change left; return the names of the removed."""
        self.sweep()
        names = {release.name for release in kept}
        gone = [release for release in self.all() if release.name not in names]
        for release in gone:
            self.remove(release)
        return [release.name for release in gone]

    def sweep(self) -> None:
        """Clear up after an interrupted change. Call it under the driver's lock."""
        for path in self.root.glob(".*.new"):
            remove(path)
        if not self.releases.is_dir():
            return
        for path in self.releases.iterdir():
            manifest = path.with_name(f"{path.name}.json")
            abandoned = path.suffix == ".json" and not path.with_name(path.stem).is_dir()
            half_written = path.name.startswith((STAGING, _REMOVED)) or path.name.endswith(".new")
            # A tree without its manifest was on its way out.
            nameless = path.is_dir() and not half_written and not manifest.exists()
            if half_written or abandoned or nameless:
                remove(path)

    def make(self) -> None:
        """Make the folders. Raises ReleaseError when this user may not."""
        try:
            self.releases.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise ReleaseError(f"cannot make {self.releases}: {error.strerror}; run this as root") from error
        if not os.access(self.releases, os.W_OK | os.X_OK, effective_ids=True):
            raise ReleaseError(f"this user may not change {self.root}: run this as root")
