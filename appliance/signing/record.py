"""``trust.json`` in the data directory: what this box has accepted, revoked and learned, in one file.

One file, replaced in one rename, so that a revocation and its sequence are there together or not at all.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from appliance.disk import write_whole
from appliance.signing.errors import SigningError
from appliance.signing.files import read_small
from appliance.signing.trust_list import KeyId, RevokedKey, Sequence

MAX_RECORD = 16 << 20


class AcceptedList(msgspec.Struct, frozen=True, kw_only=True):
    """A trust list that brought keys, with its signature: the evidence is checked again at every use."""

    document: str
    signature: str


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of the file. ``sequences`` are the highest accepted ones: by subject, then by signing key."""

    schema: Literal[1] = 1
    sequences: dict[str, dict[KeyId, Sequence]] = {}
    revoked: tuple[RevokedKey, ...] = ()
    lists: tuple[AcceptedList, ...] = ()

    def accepted(self, kind: str, name: str) -> dict[str, int]:
        """Return the highest accepted sequence of each signing key."""
        return self.sequences.get(f"{kind}:{name}", {})

    def with_sequence(self, kind: str, name: str, key_id: str, sequence: int) -> Record:
        """Return this record with a sequence noted, unless a higher one is."""
        accepted = dict(self.accepted(kind, name))
        accepted[key_id] = max(sequence, accepted.get(key_id, 0))
        return self.with_sequences(kind, name, accepted)

    def with_sequences(self, kind: str, name: str, numbers: dict[str, int]) -> Record:
        """Return this record with the accepted sequences of one subject in place of those that it has."""
        subject = f"{kind}:{name}"
        others = {key: value for key, value in self.sequences.items() if key != subject}
        return msgspec.structs.replace(self, sequences={**others, subject: numbers} if numbers else others)


def read_record(path: Path) -> Record:
    """Read the record; a file that was never written is an empty one. Raises SigningError."""
    if not os.path.lexists(path):
        return Record()
    data = read_small(path, MAX_RECORD, "store", "the trust record")
    try:
        return msgspec.json.decode(data, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SigningError(
            "store",
            f"{path} is damaged ({error}); nothing signed is accepted until it is restored from a backup, "
            "or removed (which forgets revoked keys and accepted sequences)",
        ) from error


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Hold the lock under which the record is read and written anew. Raises SigningError."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SigningError("store", f"cannot write the trust record {path}: {error.strerror}") from error
    try:
        folder = path.parent.stat()
        if os.geteuid() == 0 and folder.st_uid != 0:
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_record(path: Path, record: Record) -> None:
    """Put the record on disk; when this returns it is there. Raises SigningError."""
    data = msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=1) + b"\n"
    try:
        write_whole(path, data, 0o600)
    except OSError as error:
        raise SigningError("store", f"cannot write the trust record {path}: {error.strerror}") from error
