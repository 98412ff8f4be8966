"""Make what is carried to a box: ``python -m build.archive --key KEY --sequence N``; ``make archive`` runs it.

From the frozen tree it makes the signed system bundle (for ``appliance upgrade``) and the outer archive of a
first install: a plain tar of everything, in forms that a bare Debian unpacks. Equal inputs give equal bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from appliance import __version__
from appliance.bundles.manifest import BundleManifest, Requirements
from appliance.bundles.packs import export_pack
from appliance.bundles.tree import list_tree
from appliance.bundles.writer import write_bundle
from appliance.doctor.hardware import NEEDED_FLAGS
from appliance.errors import ApplianceError
from appliance.signing.errors import SigningError
from appliance.signing.keys import SecretKey, is_encrypted, read_public_key, read_secret_key
from appliance.signing.signatures import MAX_SEQUENCE, Subject, sign_file, signature_path
from appliance.storage.migrations import MIGRATIONS, oldest_reader
from build.freeze import source_epoch

ROOT = Path(__file__).resolve().parents[1]
NAME = "appliance"
# The signature of the outer file must not pass for that of a system bundle.
OUTER_NAME = "appliance-install"
GLIBC = "2.36"  # Debian 12's
MEMORY_BYTES = 2 << 30
SUMS = "SHA256SUMS"
TREE = "tree.tar.gz"
CHUNK = 1 << 20


class ArchiveError(Exception):
    """The archive cannot be made; the message says what to do."""


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive is made of.

    ``sources`` has install.sh and README.txt, ``units`` the systemd units, ``docs`` the manual.
    """

    tree: Path
    key: SecretKey
    sequence: int
    out: Path
    trust: Path | None = None
    packs: Path | None = None
    version: str = __version__
    sources: Path = ROOT / "build"
    units: Path = ROOT / "systemd"
    docs: Path = ROOT / "docs"


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What was made: the bundle, the outer archive and its SHA-256."""

    bundle: Path
    outer: Path
    sha256: str


def main() -> None:
    """Make the archive and say what it is; exit status 1 and the reason when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m build.archive", description="Make bundle and archive.")
    parser.add_argument("--key", type=Path, help="the secret key file to sign with (appliance pack keygen)")
    parser.add_argument("--password-file", type=Path, help="a file whose first line is the key's password")
    parser.add_argument("--sequence", type=int, default=int(time.time()), help="a number that only grows")
    parser.add_argument("--trust", type=Path, help="a folder of *.pub for the box, beside those in the tree")
    parser.add_argument("--packs", type=Path, help="a folder of installed packs to take along")
    parser.add_argument("--tree", type=Path, default=ROOT / "dist" / "appliance")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    if options.key is None:
        parser.error(
            "--key (KEY=FILE) is missing: a box takes signed bundles only; 'appliance pack keygen' makes one"
        )
    try:
        made = make_archive(
            Inputs(
                tree=options.tree,
                key=_key(options.key, options.password_file),
                sequence=options.sequence,
                out=options.out,
                trust=options.trust,
                packs=options.packs,
            )
        )
    except (ArchiveError, ApplianceError) as error:
        raise SystemExit(f"archive: {error}") from None
    print(f"{made.bundle}: {made.bundle.stat().st_size / 1e6:.1f} MB")
    print(f"{made.outer}: {made.outer.stat().st_size / 1e6:.1f} MB")
    print(f"SHA-256 to print and carry apart from it: {made.sha256}")


def make_archive(inputs: Inputs) -> Made:
    """Make ``appliance-VERSION-SEQUENCE.tar.zst``, ``…-install.tar`` and their signatures in ``inputs.out``.

    Raises ArchiveError, and BundleError, PackError or SigningError of what is packed.
    """
    if not (inputs.tree / "appliance").is_file():
        raise ArchiveError(f"there is no frozen program in {inputs.tree}: make bundle")
    if not 1 <= inputs.sequence <= MAX_SEQUENCE:
        raise ArchiveError(f"a sequence is a number from 1 to {MAX_SEQUENCE}")
    keys = _trusted(inputs)
    epoch = source_epoch()
    inputs.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".archive-", dir=inputs.out) as folder:
        work = Path(folder)
        tree = _completed(inputs, work / "tree")
        manifest = _manifest(tree, inputs, epoch)
        bundle = work / manifest.file_name
        write_bundle(tree, manifest, bundle)
        sign_file(bundle, inputs.key, manifest.subject)
        members = {
            "install.sh": _source(inputs, "install.sh"),
            "README.txt": _source(inputs, "README.txt"),
            TREE: _tree_tar(tree, work / TREE, epoch),
            bundle.name: bundle,
            signature_path(bundle).name: signature_path(bundle),
            **_packs(inputs, work / "packs"),
            **{f"trust/{path.name}": path for path in keys},
        }
        sums = work / SUMS
        sums.write_text("".join(f"{_sha256(path)}  {name}\n" for name, path in members.items()))
        outer = work / f"{bundle.name.removesuffix('.tar.zst')}-install.tar"
        _outer_tar({**members, SUMS: sums}, outer, epoch)
        subject = Subject(name=OUTER_NAME, sequence=inputs.sequence, kind="system")
        made = (bundle, signature_path(bundle), outer, sign_file(outer, inputs.key, subject))
        digest = _sha256(outer)
        for path in made:
            path.replace(inputs.out / path.name)
    return Made(bundle=inputs.out / bundle.name, outer=inputs.out / outer.name, sha256=digest)


def _manifest(tree: Path, inputs: Inputs, epoch: int) -> BundleManifest:
    files = list_tree(tree)
    return BundleManifest(
        kind="system",
        name=NAME,
        version=inputs.version,
        sequence=inputs.sequence,
        created=epoch,
        files=files,
        schema_version=len(MIGRATIONS),
        schema_readable_from=oldest_reader(MIGRATIONS),
        requires=Requirements(
            cpu=NEEDED_FLAGS,
            glibc=GLIBC,
            memory_bytes=MEMORY_BYTES,
            disk_bytes=sum(entry.length for entry in files),
        ),
    )


def _trusted(inputs: Inputs) -> list[Path]:
    """Return the key files for the box. What it is given must be signed by one of them, or it takes nothing."""
    own = sorted(inputs.trust.glob("*.pub")) if inputs.trust is not None else []
    if inputs.trust is not None and not own:
        raise ArchiveError(f"{inputs.trust} holds no *.pub")
    built_in = sorted((inputs.tree / "trust").glob("*.pub"))
    if inputs.key.public not in [read_public_key(path) for path in (*own, *built_in)]:
        raise ArchiveError(
            f"the signing key {inputs.key.public.id} is not among the trusted ones: put its *.pub into a folder "
            "and give that (TRUST=DIR, of make bundle or of make archive)"
        )
    names = {path.name for path in own}
    return own + [path for path in built_in if path.name not in names]


def _completed(inputs: Inputs, tree: Path) -> Path:
    """Return the tree with the systemd units and the manual in it: hard links, for nothing in it is changed."""
    if (inputs.tree / "systemd").is_dir():
        return inputs.tree
    try:
        shutil.copytree(inputs.tree, tree, symlinks=True, copy_function=os.link)
    except OSError:  # another file system, or one without hard links
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(inputs.tree, tree, symlinks=True)
    for folder, source in (("systemd", inputs.units), ("docs", inputs.docs)):
        for path in sorted(source.rglob("*")):
            if path.is_file() and (folder == "docs" or path.suffix != ".md"):
                target = tree / folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return tree


def _source(inputs: Inputs, name: str) -> Path:
    path = inputs.sources / name
    if not path.is_file():
        raise ArchiveError(f"{path} is missing")
    return path


def _packs(inputs: Inputs, folder: Path) -> dict[str, Path]:
    """Write and sign the bundle of every pack; the release's sequence is theirs too."""
    folder.mkdir()
    members: dict[str, Path] = {}
    directories = sorted(inputs.packs.iterdir()) if inputs.packs is not None and inputs.packs.is_dir() else []
    for directory in directories:
        if directory.name[0] == "." or not directory.is_dir():
            continue
        manifest = export_pack(directory, folder, inputs.sequence)
        path = folder / manifest.file_name
        sign_file(path, inputs.key, manifest.subject)
        for each in (path, signature_path(path)):
            members[f"packs/{each.name}"] = each
    if inputs.packs is not None and not members:
        raise ArchiveError(f"{inputs.packs} holds no packs")
    return members


def _tree_tar(tree: Path, target: Path, epoch: int) -> Path:
    """Write the same tree for gzip and tar, which a bare Debian has; paths are relative to the tree."""
    with (
        target.open("wb") as file,
        # No name and no time of its own in the header.
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=9) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in _folders(tree):
            tar.addfile(_header(str(path.relative_to(tree)), epoch, 0o755, tarfile.DIRTYPE))
        for entry in list_tree(tree):
            header = _header(entry.path, epoch, entry.permissions)
            if entry.target is not None:
                header.type, header.linkname = tarfile.SYMTYPE, entry.target
                tar.addfile(header)
                continue
            header.size = entry.length
            with (tree / entry.path).open("rb") as contents:
                tar.addfile(header, contents)
    return target


def _outer_tar(members: dict[str, Path], target: Path, epoch: int) -> None:
    with tarfile.open(target, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in sorted({name.split("/")[0] for name in members if "/" in name}):
            tar.addfile(_header(folder, epoch, 0o755, tarfile.DIRTYPE))
        for name, path in members.items():
            header = _header(name, epoch, 0o755 if name == "install.sh" else 0o644)
            header.size = path.stat().st_size
            with path.open("rb") as contents:
                tar.addfile(header, contents)


def _header(name: str, epoch: int, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.mtime, header.mode, header.type = epoch, mode, kind
    return header


def _folders(tree: Path) -> Iterator[Path]:
    for path in sorted(tree.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(path: Path, password_file: Path | None) -> SecretKey:
    if not is_encrypted(path):
        return read_secret_key(path, None)
    if password_file is None:
        raise SigningError("invalid_key", f"{path} is encrypted: give --password-file")
    return read_secret_key(path, password_file.read_text("utf-8").split("\n", 1)[0])


if __name__ == "__main__":
    main()
