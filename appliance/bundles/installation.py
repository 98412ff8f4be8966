"""Packs into the store: only with a good signature, unless it is said in so many words that none is wanted."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance.bundles import trial_numbers
from appliance.bundles.packs import pack_reader
from appliance.frozen import is_frozen
from appliance.packs.manifest import Manifest
from appliance.packs.meter import Cancelled, Meter, Progress
from appliance.packs.store import PackStore
from appliance.signing.errors import SigningError
from appliance.signing.trust import TrustStore, Verified
from appliance.signing.verification import verify_file


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """The pack that was installed, and whose signature let it in (None: it was allowed without)."""

    manifest: Manifest
    verified: Verified | None


def verify_pack(
    source: Path, trust: TrustStore, *, allow_unsigned: bool, meter: Meter | None = None
) -> Verified | None:
    """Check where a pack comes from, before a byte of it is parsed; None when it is allowed without a signature.

    ``allow_unsigned`` lets in what has no signature; one that is there must be good all the same. An
    unpacked directory has none; in a clone, where packs are built, it needs none. Raises SigningError;
    PackCancelledError by ``meter``.
    """
    if source.is_dir():
        if is_frozen() and not allow_unsigned:
            raise SigningError(
                "unsigned",
                f"{source.name} is an unpacked directory, which nobody signed: install the pack's bundle "
                "(NAME.tar.zst with its .minisig), or give --allow-unsigned if you built it yourself",
            )
        return None

    def progress(done: int, total: int) -> None:
        if meter is not None:
            meter.report(done, total)

    try:
        return verify_file(source, trust, kind="pack", progress=progress)
    except SigningError as error:
        if error.code != "unsigned" or not source.exists():
            raise
        if allow_unsigned:
            return None
        raise SigningError(
            "unsigned",
            f"{error.message}: get its signature too, or give --allow-unsigned if you know where it comes from",
        ) from error


def install_pack(
    packs: PackStore,
    trust: TrustStore,
    source: Path,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    *,
    allow_unsigned: bool = False,
) -> Installed:
    """Verify and install a bundle, a plain archive or a directory; see ``PackStore.install`` for crashes.

    The sequence is recorded right before the new pack takes the old one's place: whatever happens in
    between, the same bundle is accepted again and an older one is not, until the pack gives way because it does not
    load. Raises SigningError, BundleError, PackError.
    """
    verified = verify_pack(source, trust, allow_unsigned=allow_unsigned, meter=Meter(progress, cancelled))

    def accept(manifest: Manifest) -> bool:
        # What never loaded is no way back.
        works = not trial_numbers.is_first(packs, manifest.name)
        if verified is not None:
            trial_numbers.accept(packs, trust, manifest, verified)
        return works

    reader = None if source.is_dir() else pack_reader(verified)
    manifest = packs.install(source, progress, cancelled, reader=reader, accept=accept, keep_previous=True)
    return Installed(manifest=manifest, verified=verified)
