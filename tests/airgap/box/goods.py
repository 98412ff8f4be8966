"""What is carried to the box: the archive of a first install, the next release, packs, and what must be refused."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.bundles.manifest import BundleManifest, parse_manifest
from appliance.bundles.tree import list_tree
from appliance.bundles.writer import write_bundle
from appliance.signing.keys import SecretKey, write_public_key
from appliance.signing.signatures import sign_file
from appliance.signing.trust_list import RevokedKey, TrustList, write_trust_list
from build.archive import Inputs, make_archive
from tests.airgap.box.next_release import NextRelease, freeze_next
from tests.airgap.box.pack_goods import PACK, PackGoods, make_pack_goods
from tests.airgap.box.shell import run
from tests.service import link_default_packs

# Another tree than that of ``make bundle``: BOX_TREE.
TREE = Path(os.environ.get("BOX_TREE") or Path(__file__).parents[3] / "dist" / "appliance")
FIRST, SECOND, NO_SMOKE, NO_SERVICE = 1, 2, 3, 4

# The real program for everything but one command, which ends as a program does that does not work on this box: before
# that `serve` opens the store of the box, which migrates it.
BROKEN = """#!/bin/sh
for word in "$@"; do
    case $word in
        {command})
            if [ {command} = serve ]; then
                "${{0%/*}}/appliance-that-works" user list > /dev/null && echo "the store is migrated" >&2
            fi
            echo "this release is broken on purpose" >&2
            exit 1 ;;
    esac
done
exec "${{0%/*}}/appliance-that-works" "$@"
"""


@dataclass(frozen=True)
class Goods:
    """Files by what they are. All bundles have their signature beside them; ``next`` is the later ones' program."""

    outer: Path
    sha256: str
    first: Path
    second: Path
    fails_smoke: Path
    fails_service: Path
    foreign: Path
    stolen: Path
    revocation: Path
    damaged: Path
    next: NextRelease
    packs: PackGoods


def make_goods(folder: Path) -> Goods:
    """Make everything in ``folder`` from the frozen tree and the next release's, with keys that nobody keeps."""
    key, second_key, stranger = SecretKey.generate(), SecretKey.generate(), SecretKey.generate()
    trust = folder / "keys"
    trust.mkdir()
    write_public_key(trust / "proof.pub", key.public)
    write_public_key(trust / "stolen.pub", second_key.public)
    link_default_packs(folder)
    made = make_archive(
        Inputs(tree=TREE, key=key, sequence=FIRST, out=folder, trust=trust, packs=folder / "packs")
    )
    upcoming = freeze_next(folder / "next")
    run("tar", "-xf", str(made.outer), "-C", str(folder), "tree.tar.gz")
    run("tar", "-xzf", str(folder / "tree.tar.gz"), "-C", str(upcoming.tree), "systemd", "docs")
    (folder / "tree.tar.gz").unlink()
    bundles = {
        SECOND: _release(upcoming, made.bundle, SECOND, key, None),
        NO_SMOKE: _release(upcoming, made.bundle, NO_SMOKE, key, "smoke"),
        NO_SERVICE: _release(upcoming, made.bundle, NO_SERVICE, key, "serve"),
    }
    foreign = _signed_by(bundles[SECOND], stranger, folder / "foreign")
    stolen = _signed_by(bundles[SECOND], second_key, folder / "stolen")
    revoked = RevokedKey(key_id=second_key.public.id, reason="laptop stolen")
    revocation = folder / "1.trust.json"
    write_trust_list(
        revocation, TrustList(sequence=1, created=int(time.time()), revoked=(revoked,), trusted=()), key
    )
    damaged = folder / "damaged" / bundles[SECOND].name
    damaged.parent.mkdir()
    for path in (bundles[SECOND], _signature(bundles[SECOND])):
        shutil.copyfile(path, damaged.with_name(path.name))
    _flip_a_bit(damaged)
    shutil.rmtree(folder / "next")
    return Goods(
        outer=made.outer,
        sha256=made.sha256,
        first=made.bundle,
        second=bundles[SECOND],
        fails_smoke=bundles[NO_SMOKE],
        fails_service=bundles[NO_SERVICE],
        foreign=foreign,
        stolen=stolen,
        revocation=revocation,
        damaged=damaged,
        next=upcoming,
        packs=make_pack_goods(folder / "packs" / PACK, folder / "pack-goods", key),
    )


def _release(program: NextRelease, first: Path, sequence: int, key: SecretKey, broken: str | None) -> Path:
    """Write and sign a release of the next program; ``broken`` names a command that fails in it."""
    tree = program.tree.with_name(f"tree-{sequence}")
    shutil.copytree(program.tree, tree, symlinks=True, copy_function=os.link)
    (tree / "RELEASE").write_text(f"{sequence}\n")
    if broken is not None:
        (tree / "appliance").rename(tree / "appliance-that-works")
        (tree / "appliance").write_text(BROKEN.format(command=broken))
        (tree / "appliance").chmod(0o755)
    manifest = msgspec.structs.replace(
        _manifest_of(first),
        version=program.version,
        sequence=sequence,
        files=list_tree(tree),
        schema_version=program.schema_version,
        schema_readable_from=program.schema_readable_from,
    )
    path = first.with_name(manifest.file_name)
    write_bundle(tree, manifest, path)
    sign_file(path, key, manifest.subject)
    shutil.rmtree(tree)
    return path


def _manifest_of(bundle: Path) -> BundleManifest:
    return parse_manifest(run("tar", "--zstd", "-xOf", str(bundle), "MANIFEST.json").stdout.encode())


def _signature(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.minisig")


def _signed_by(bundle: Path, key: SecretKey, folder: Path) -> Path:
    """Copy a bundle and sign it with ``key``, as an attacker would: everything right but the key."""
    folder.mkdir()
    subject = _manifest_of(bundle).subject
    copy = folder / bundle.name
    shutil.copyfile(bundle, copy)
    sign_file(copy, key, subject)
    return copy


def _flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
