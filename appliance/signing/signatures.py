"""Signatures in minisign's text format, pre-hashed only: Ed25519 over the BLAKE2b-512 of a file.

Four lines: a comment that nobody vouches for (and nobody shows), the base64 of ``ED``, key id and
signature; the trusted comment; the base64 of a second signature, over the first one and that comment.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import msgspec

from appliance.disk import write_whole
from appliance.signing.errors import SigningError
from appliance.signing.files import open_regular, read_small
from appliance.signing.keys import PublicKey, SecretKey, strict_base64

SUFFIX = ".minisig"
MAX_SIGNATURE_FILE = 4096
# What fits into 53 bits is the same number in every JSON reader.
MAX_SEQUENCE = (1 << 53) - 1
CHUNK = 1 << 20

Kind = Literal["system", "pack", "revocation"]
# Called with (bytes done, bytes in all); may raise to stop.
Progress = Callable[[int, int], None]

_UNTRUSTED = "untrusted comment: "
_TRUSTED = "trusted comment: "
_PREHASHED = b"ED"
_LEGACY = b"Ed"
_SUBJECT = re.compile(r"name:([a-z0-9][a-z0-9._-]{0,63}) sequence:([1-9][0-9]{0,15}) kind:([a-z]{1,16})")


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a signature says of its file: the trusted comment, in our words."""

    name: str
    sequence: int
    kind: Kind

    def comment(self) -> str:
        """Return the trusted comment. Raises SigningError when a part cannot be written."""
        text = f"name:{self.name} sequence:{self.sequence} kind:{self.kind}"
        parse_subject(text)
        return text


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """A signature file, read but not yet checked."""

    id_bytes: bytes
    signature: bytes
    comment: str
    comment_signature: bytes

    @property
    def key_id(self) -> str:
        """The id of the key that it says it is from, as minisign shows it."""
        return self.id_bytes[::-1].hex().upper()

    def text(self) -> str:
        """Return the contents of the signature file."""
        return "\n".join(
            (
                f"{_UNTRUSTED}signature by key {self.key_id}",
                base64.b64encode(_PREHASHED + self.id_bytes + self.signature).decode(),
                f"{_TRUSTED}{self.comment}",
                base64.b64encode(self.comment_signature).decode(),
                "",
            )
        )

    def vouches_for_comment(self, key: PublicKey) -> bool:
        """Tell whether ``key`` signed the trusted comment."""
        return key.verifies(self.comment_signature, self.signature + self.comment.encode())

    def vouches_for(self, key: PublicKey, digest: bytes) -> bool:
        """Tell whether ``key`` signed the file with this BLAKE2b-512."""
        return key.verifies(self.signature, digest)


def parse_subject(comment: str) -> Subject:
    """Read a trusted comment. Raises SigningError when it is not exactly of our form."""
    match = _SUBJECT.fullmatch(comment)
    if match is None or int(match[2]) > MAX_SEQUENCE or match[3] not in get_args(Kind):
        raise SigningError(
            "wrong_name",
            "the signature's trusted comment is not of the form "
            "'name:NAME sequence:NUMBER kind:system|pack|revocation': it was not made for an appliance",
        )
    kind: Kind = "system" if match[3] == "system" else "pack" if match[3] == "pack" else "revocation"
    return Subject(name=match[1], sequence=int(match[2]), kind=kind)


def parse_signature(data: bytes, what: str) -> Signature:
    """Read a signature file; ``what`` names it in errors. Raises SigningError when it is none of minisign's."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise SigningError("damaged", f"{what} is damaged: not text") from error
    if (
        len(lines) != 5
        or lines[4]
        or not lines[0].startswith(_UNTRUSTED)
        or not lines[2].startswith(_TRUSTED)
        or any(not line.isprintable() for line in lines)
    ):
        raise SigningError("damaged", f"{what} is damaged, or not a signature file of minisign's")
    first = strict_base64(lines[1], 74, "damaged", what)
    if first[:2] == _LEGACY:
        raise SigningError(
            "damaged", f"{what} is in minisign's legacy format: sign again, pre-hashed (minisign -SH)"
        )
    if first[:2] != _PREHASHED:
        raise SigningError("damaged", f"{what} is damaged: of an unknown algorithm")
    return Signature(
        id_bytes=first[2:10],
        signature=first[10:],
        comment=lines[2].removeprefix(_TRUSTED),
        comment_signature=strict_base64(lines[3], 64, "damaged", what),
    )


def signature_path(path: Path) -> Path:
    """Return where the signature of ``path`` is: beside it."""
    return path.with_name(path.name + SUFFIX)


def read_signature(path: Path) -> Signature:
    """Read the signature beside the file ``path``. Raises SigningError, "unsigned" when there is none."""
    beside = signature_path(path)
    try:
        signed, there = beside.exists(), path.exists()
    except OSError as error:  # a folder that this user may not enter, a name that is too long
        raise SigningError("damaged", f"cannot read {error.filename}: {error.strerror}") from error
    if not signed and not there:
        raise SigningError("unsigned", f"there is no file {path}")
    if not signed:
        raise SigningError("unsigned", f"{path.name} is not signed: there is no {beside.name} beside it")
    return parse_signature(read_small(beside, MAX_SIGNATURE_FILE, "damaged", "a signature"), beside.name)


def digest_file(path: Path, progress: Progress | None = None) -> tuple[bytes, int]:
    """Return the BLAKE2b-512 of a file and how many bytes went into it. Raises SigningError."""
    digest = hashlib.blake2b()
    done = 0
    try:
        with open_regular(path) as file:
            total = path.stat().st_size
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    except OSError as error:
        raise SigningError("damaged", f"cannot read {path}: {error.strerror}") from error
    return digest.digest(), done


def sign_digest(key: SecretKey, digest: bytes, comment: str) -> Signature:
    """Sign a BLAKE2b-512 with a trusted comment (one line)."""
    signature = key.sign(digest)
    return Signature(
        id_bytes=key.public.id_bytes,
        signature=signature,
        comment=comment,
        comment_signature=key.sign(signature + comment.encode()),
    )


def sign_file(path: Path, key: SecretKey, subject: Subject, progress: Progress | None = None) -> Path:
    """Write the signature of a file beside it, over an older one, and return where. Raises SigningError."""
    comment = subject.comment()
    digest, _ = digest_file(path, progress)
    beside = signature_path(path)
    try:
        write_whole(beside, sign_digest(key, digest, comment).text().encode(), 0o644)
    except OSError as error:
        raise SigningError("store", f"cannot write {beside}: {error.strerror}") from error
    return beside
