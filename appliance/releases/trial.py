"""A new release tries everything once, over a copy of this box's data, before anything is switched."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.backup.manifest import STORE
from appliance.backup.snapshot import snapshot
from appliance.backup.swap import acting_as_owner
from appliance.disk import remove
from appliance.releases.errors import ReleaseError
from appliance.releases.layout import Release
from appliance.releases.snapshot import TRIAL, has_store, new_name
from appliance.storage.migrations import versions
from appliance.storage.sqlite import connect, wrap
from appliance.workers.environment import worker_environment
from appliance.workers.sandbox import die_with_parent

LONGEST_SECONDS = 1800.0
_SHOWN = 3000


def rehearse(release: Release, data_dir: Path, secret_file: Path, say: Callable[[str], None]) -> None:
    """Run the smoke test of ``release`` over a copy, whose store it migrates. Raises ReleaseError.

    The copy holds the stores, the secret and the packs (by second names, where the disk has them).
    """
    copy = data_dir / new_name(TRIAL)
    try:
        with acting_as_owner(data_dir):
            _copy(data_dir, copy, secret_file)
            before = _schema(copy)
        smoke([str(release.program)], str(release), copy, ["--data-dir", str(copy)], say)
        with acting_as_owner(data_dir):
            _require_way_back(release, copy)
            after = _schema(copy)
        if after != before:
            say(f"it brings the store from schema {before} to {after}; so far only in the copy")
    finally:
        with acting_as_owner(data_dir):
            remove(copy)


def _copy(data_dir: Path, copy: Path, secret_file: Path) -> None:
    copy.mkdir(mode=0o700)
    if has_store(data_dir):
        snapshot(data_dir, (), copy)
    try:
        secret = secret_file.read_bytes()
    except OSError:  # a credential that only the service is given: any will do to open a copy
        secret = secrets.token_bytes(32)
    secret_copy = copy / "secret.key"
    secret_copy.touch(mode=0o600)
    secret_copy.write_bytes(secret)
    packs = copy / "packs"
    packs.mkdir()
    for pack in (data_dir / "packs").glob("[!.]*"):
        if pack.is_dir():
            shutil.copytree(pack, packs / pack.name, symlinks=False, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def smoke(
    program: Sequence[str], what: str, home: Path, arguments: Sequence[str], say: Callable[[str], None]
) -> None:
    """Run the smoke test of ``program`` as the owner of the folder ``home``; ``what`` is tried by it.

    Raises ReleaseError, with what it said, when something does not work.
    """
    owner = home.stat()
    # Programs that are started over the data must not be root's.
    others = (
        {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": [owner.st_gid]}
        if os.geteuid() == 0 and owner.st_uid != 0
        else {}
    )
    try:
        done = subprocess.run(
            [*program, "smoke", *arguments],
            env={**worker_environment(1), "TMPDIR": str(home)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LONGEST_SECONDS,
            check=False,
            preexec_fn=die_with_parent,
            **others,  # type: ignore[call-overload]
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ReleaseError(f"{what} does not run on this machine: {error}. Nothing was changed") from error
    text = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode != 0:
        raise ReleaseError(
            f"{what} failed its smoke test, so nothing was changed. It said:\n{text[-_SHOWN:]}"
        )
    say(text.rsplit("\n", 1)[-1])


def _require_way_back(release: Release, copy: Path) -> None:
    """Refuse a release after which this program could not open the store any more."""
    from appliance.storage.migrations import MIGRATIONS

    version, oldest = _versions(copy)
    if oldest > len(MIGRATIONS):
        raise ReleaseError(
            f"{release} leaves a store of schema {version}, which the present release could not open (it knows up to "
            f"{len(MIGRATIONS)}): there would be no way back. Upgrade to a release in between first"
        )


def _schema(copy: Path) -> int:
    return _versions(copy)[0]


def _versions(copy: Path) -> tuple[int, int]:
    """Return the schema of the copied store and the oldest that may open it; zeros without a store."""
    if not (copy / STORE).exists():
        return 0, 0
    connection = connect(copy / STORE, read_only=True)
    try:
        return versions(wrap(connection))
    finally:
        connection.close()
