"""The number of a pack that is on trial: it counts from its installation on, and no more once it gave way.

A version that does not load must not make the one that works, or a repaired one, an older one. What had been accepted
before is noted beside the packs, as ``.number-NAME``, and restored when the version before returns, or when there is
none: a version that ever served stays accepted, so this opens no way back by an old file.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgspec

from appliance.disk import write_whole
from appliance.packs.errors import PackNotFoundError, refusal
from appliance.packs.manifest import Manifest
from appliance.packs.store import PackStore
from appliance.signing.signatures import Kind
from appliance.signing.trust import TrustStore, Verified

log = logging.getLogger(__name__)

_NUMBER = ".number-"
KIND: Kind = "pack"


class _Noted(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers by signing key ``before`` the trial and ``after`` its beginning; the manifest of what is tried."""

    before: dict[str, int]
    after: dict[str, int]
    manifest_sha256: str
    # Whether the note goes once the pack has loaded: that of an earlier release stayed after a first installation.
    awaited: bool = False


def accept(packs: PackStore, trust: TrustStore, manifest: Manifest, verified: Verified) -> None:
    """Accept the number of a pack that is about to take its place. Raises SigningError, PackError."""
    name = manifest.name
    trust.check_sequence(verified, verified.key_id)
    on_trial = name in packs.previous() or is_first(packs, name)
    if on_trial or _installed(packs, name) != manifest:
        accepted = trust.accepted(KIND, name)
        earlier = _read(packs, name) if on_trial else None
        noted = _Noted(
            # Of several in a row without one that loaded, the numbers before the first count.
            before=accepted if earlier is None else earlier.before,
            after={**accepted, verified.key_id: max(verified.sequence, accepted.get(verified.key_id, 0))},
            manifest_sha256=_fingerprint(manifest),
            awaited=True,
        )
        try:
            write_whole(_place(packs, name), msgspec.json.encode(noted), 0o600)
        except OSError as error:
            raise refusal(error, f"note the number of {name}") from error
    trust.accept(verified)


def is_first(packs: PackStore, name: str) -> bool:
    """Tell whether a pack without a version before has not shown yet that it loads. Raises PackError, OSError."""
    if name in packs.previous():
        return False
    # Else the noted number is of what is only about to come, or was cut off before it came.
    manifest = _installed(packs, name)
    noted = None if manifest is None else _of(packs, manifest)
    return noted is not None and noted.awaited


def keep(packs: PackStore, trust: TrustStore, manifest: Manifest) -> None:
    """Let the number of a version count for good: it has loaded. Raises SigningError, OSError."""
    noted = _of(packs, manifest)
    if noted is not None:
        # Where an earlier attempt was cut off while it gave way.
        trust.restore(KIND, manifest.name, noted.after, instead_of=noted.before)
    forget(packs, manifest.name)


def withdraw(packs: PackStore, trust: TrustStore, manifest: Manifest) -> None:
    """Let the numbers count that did before this version came, which is left again. Raises SigningError.

    May be done again. Nothing happens for a version that came without a signature, or by a rollback.
    """
    noted = _of(packs, manifest)
    if noted is not None:
        trust.restore(KIND, manifest.name, noted.before, instead_of=noted.after)


def undecided(packs: PackStore) -> tuple[str, ...]:
    """Return the names of packs of which a number is noted."""
    return tuple(sorted(path.name.removeprefix(_NUMBER) for path in packs.path.glob(f"{_NUMBER}*")))


def forget(packs: PackStore, name: str) -> None:
    """Remove what was noted: it is decided. Raises OSError."""
    _place(packs, name).unlink(missing_ok=True)


def _installed(packs: PackStore, name: str) -> Manifest | None:
    try:
        return packs.get(name).manifest
    except PackNotFoundError:
        return None


def _of(packs: PackStore, manifest: Manifest) -> _Noted | None:
    noted = _read(packs, manifest.name)
    return noted if noted is not None and noted.manifest_sha256 == _fingerprint(manifest) else None


def _place(packs: PackStore, name: str) -> Path:
    return packs.path / f"{_NUMBER}{name}"


def _read(packs: PackStore, name: str) -> _Noted | None:
    try:
        return msgspec.json.decode(_place(packs, name).read_bytes(), type=_Noted)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("what was accepted of %s before cannot be read, so its number stays: %s", name, error)
        return None


def _fingerprint(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()
