"""A signed bundle becomes a release on the disk: verified before it is parsed, whole before it has a name."""

from __future__ import annotations

import secrets
from pathlib import Path

from appliance.bundles.errors import BundleError
from appliance.bundles.manifest import BundleManifest
from appliance.bundles.reader import check_bundle, read_bundle_manifest, stage
from appliance.bundles.tree import check_tree
from appliance.disk import sync_directory
from appliance.packs.meter import Progress
from appliance.releases.errors import ReleaseError
from appliance.releases.layout import STAGING, Layout, Release
from appliance.signing.trust import TrustStore, Verified
from appliance.signing.verification import verify_file

NAME = "appliance"


def verify(
    bundle: Path, trust: TrustStore, progress: Progress | None = None, *, check_sequence: bool = True
) -> tuple[Verified, BundleManifest]:
    """Check who signed a system bundle, and read what it says it is. Raises SigningError, BundleError."""
    verified = verify_file(
        bundle, trust, kind="system", name=NAME, check_sequence=check_sequence, progress=progress
    )
    return verified, read_bundle_manifest(bundle, verified)


def unpack(layout: Layout, bundle: Path, verified: Verified, progress: Progress | None = None) -> Release:
    """Put the release of a verified bundle on the disk; one that is there and whole is taken as it is.

    Call it under the driver's lock. Raises BundleError, ReleaseError.
    """
    manifest = read_bundle_manifest(bundle, verified)
    present = _present(layout, manifest)
    if present is not None:
        # What was read before may have changed since it was verified: the whole of it once more.
        check_bundle(bundle, verified, progress)
        return present
    staged = layout.releases / f"{STAGING}{secrets.token_hex(8)}"
    manifest = stage(bundle, verified, staged, progress)
    return layout.add(staged, manifest)


def adopt(layout: Layout, bundle: Path, verified: Verified, tree: Path) -> Release:
    """Make a release of a tree that the essential tools unpacked, once it is the signed bundle's, byte for byte.

    ``tree`` lies in ``layout.releases`` and is moved. Raises BundleError, ReleaseError.
    """
    manifest = check_bundle(bundle, verified)
    present = _present(layout, manifest)
    if present is not None:
        return present
    check_tree(manifest, tree)
    for entry in manifest.files:
        if entry.target is None:
            (tree / entry.path).chmod(entry.permissions)
    for folder in (tree, *(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())):
        folder.chmod(0o755)
        sync_directory(folder)
    return layout.add(tree, manifest)


def refuse_unfit(manifest: BundleManifest, current: Release) -> None:
    """Raise ReleaseError for what is no step forward from ``current``."""
    if manifest.kind != "system":
        raise ReleaseError(f"this is {manifest.name}, a model pack: 'appliance pack install' takes it")
    if manifest.sequence == current.sequence:
        raise ReleaseError(f"{current} is what this box runs already")
    if manifest.sequence < current.sequence:
        raise ReleaseError(
            f"the bundle is number {manifest.sequence}, older than {current}, which this box runs: going back by "
            "an old file is refused, for it may bring back old faults (the previous release is at hand with "
            "'appliance rollback')"
        )


def _present(layout: Layout, manifest: BundleManifest) -> Release | None:
    directory = layout.directory(manifest)
    if not directory.is_dir():
        return None
    try:
        check_tree(manifest, directory)
        release = layout.get(directory.name)
    except (BundleError, ReleaseError) as error:
        raise ReleaseError(
            f"{directory} is there already and is not what the bundle holds ({error.message}): remove it"
        ) from error
    if release.manifest != manifest:
        raise ReleaseError(f"{directory} is there already, from another bundle of the same number: remove it")
    return release
