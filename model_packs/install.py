"""Put a finished pack of the cache into a service's pack store, without copying where links can do."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

from appliance.disk import remove, replace
from appliance.packs.lock import hold
from appliance.packs.manifest import MANIFEST_NAME, Manifest
from appliance.packs.meter import Meter
from model_packs.cache import sync_tree, whole_pack
from model_packs.errors import BuildError

# What a file system says that cannot link these two places, or not once more.
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


def install_pack(pack: Path, manifest: Manifest, packs: Path) -> bool:
    """Link (or copy, on another file system) ``pack`` to ``packs/<name>``; an older pack is replaced in one step.

    Takes the store's own lock and staging names, so that a running service's store is not disturbed
    and sweeps up after a killed builder. Return False when that very pack is there already. Raises
    BuildError when it cannot be written.
    """
    target = packs / manifest.name
    if whole_pack(target, manifest.recipe_sha256) is not None:
        return False
    staging = packs / f".staging-{secrets.token_hex(8)}"
    try:
        packs.mkdir(parents=True, exist_ok=True)
        with hold(packs / ".lock", Meter()):
            for path in [MANIFEST_NAME, *(file.path for file in manifest.file)]:
                (staging / path).parent.mkdir(parents=True, exist_ok=True)
                _link(pack / path, staging / path)
            sync_tree(staging)
            replace(staging, target, packs / f".old-{manifest.name}")
    except OSError as error:
        raise BuildError(f"cannot install {manifest.name} into {packs}: {error.strerror or error}") from error
    finally:
        remove(staging)
    return True


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
