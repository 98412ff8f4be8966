"""Which keys this box trusts, and what it accepted from them.

Roots of trust are ``*.pub`` files in folders that only root writes: those built into the release tree and
those of ``trust_dir``. Trust lists signed by a trusted key bring further keys and revoke old ones. The
record of them is in the data directory, which the service may write: therefore a further key counts only
as long as the signed list that brought it verifies, from a root on; the record alone can make nobody trusted.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from appliance.config import Settings
from appliance.frozen import tree
from appliance.signing.errors import SigningError
from appliance.signing.keys import PUBLIC_SUFFIX, PublicKey, read_public_key
from appliance.signing.record import AcceptedList, Record, changing, read_record, write_record
from appliance.signing.signatures import (
    Kind,
    Signature,
    Subject,
    parse_signature,
    parse_subject,
    read_signature,
)
from appliance.signing.trust_list import TrustList, parse_trust_list, read_trust_list

BUILT_IN = "trust"
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose signature is good: what it says it is, who signed, and which bytes exactly.

    ``digest`` is the BLAKE2b-512 of the ``size`` bytes that were checked: whoever reads the file again
    compares, for it may have changed since.
    """

    name: str
    sequence: int
    kind: Kind
    key_id: str
    digest: bytes
    size: int


class TrustedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that the box knows. ``source`` says from where; ``revoked`` why it is not trusted any more."""

    key: PublicKey
    source: str
    revoked: str | None = None


class TrustStore:
    """The keys of ``folders`` (those that are not there hold none) and the record in the file ``record``.

    Everything is read anew by every call: root may place a key while the service runs. Any process may
    use it; changes take turns. Every method raises SigningError.
    """

    def __init__(self, record: Path, folders: Sequence[Path]) -> None:
        self._path = record
        self._folders = tuple(folders)

    def known_keys(self) -> tuple[TrustedKey, ...]:
        """Return every key that the box knows, revoked ones included, by id."""
        return tuple(known for _, known in sorted(self._known(read_record(self._path)).items()))

    def key(self, key_id: str, what: str) -> PublicKey:
        """Return a trusted key; ``what`` names the file that it signed in the refusal."""
        return self._key(read_record(self._path), key_id, what)

    def check_sequence(self, subject: Subject | Verified, key_id: str) -> None:
        """Refuse what is older than what was accepted under its name; the same again is no rollback.

        What keys accepted that are revoked by now does not count: whoever stole one could otherwise
        lock out every later release by a very high number. Trust lists are held against those of their
        own key only, for the same reason: they are what revokes.
        """
        self._check_sequence(read_record(self._path), subject, key_id)

    def accept(self, verified: Verified) -> None:
        """Note that ``verified`` is accepted: from now on older ones are refused. Durable when it returns.

        Call it before the new thing takes the old one's place: after a crash in between the same file is
        still accepted, while the other order would let an older one in.
        """
        with changing(self._path):
            record = read_record(self._path)
            self._key(record, verified.key_id, verified.name)
            self._check_sequence(record, verified, verified.key_id)
            key_id, sequence = verified.key_id, verified.sequence
            write_record(self._path, record.with_sequence(verified.kind, verified.name, key_id, sequence))

    def accepted(self, kind: Kind, name: str) -> dict[str, int]:
        """Return the highest number that was accepted of each signing key, under one name."""
        return read_record(self._path).accepted(kind, name)

    def restore(self, kind: Kind, name: str, numbers: dict[str, int], *, instead_of: dict[str, int]) -> None:
        """Let other numbers count under a name, where ``instead_of`` still does: what was accepted was left again.

        Only for what never served. Durable when it returns; once more is harmless.
        """
        with changing(self._path):
            record = read_record(self._path)
            if record.accepted(kind, name) == instead_of:
                write_record(self._path, record.with_sequences(kind, name, numbers))

    def check_list(self, path: Path) -> TrustList:
        """Check a trust list and its signature, and that it could be applied, without applying it."""
        data, signature = read_list(path)
        return self._checked_list(read_record(self._path), data, signature, path.name)

    def apply_list(self, path: Path) -> TrustList:
        """Revoke and trust what a signed list says. Durable when it returns; once more is harmless."""
        return self.apply(*read_list(path), path.name)

    def apply(self, data: bytes, signature: Signature, what: str) -> TrustList:
        """Do what ``apply_list`` does with a list that was read; ``what`` names it in refusals."""
        with changing(self._path):
            record = read_record(self._path)
            document = self._checked_list(record, data, signature, what)
            revoked = {entry.key_id: entry for entry in (*document.revoked, *record.revoked)}
            lists = record.lists
            entry = AcceptedList(document=data.decode(), signature=signature.text())
            if document.trusted and entry not in lists:
                lists = (*lists, entry)
            write_record(
                self._path,
                msgspec.structs.replace(
                    record.with_sequence(document.kind, document.name, signature.key_id, document.sequence),
                    revoked=tuple(revoked.values()),
                    lists=lists,
                ),
            )
        return document

    def summary(self) -> list[dict[str, Any]]:
        """Return the keys as JSON-able values, for people and commands."""
        return [
            {
                "key_id": known.key.id,
                "public_key": known.key.line(),
                "source": known.source,
                "revoked": known.revoked,
            }
            for known in self.known_keys()
        ]

    def _checked_list(self, record: Record, data: bytes, signature: Signature, what: str) -> TrustList:
        key = self._key(record, signature.key_id, what)
        if not signature.vouches_for_comment(key) or not signature.vouches_for(
            key, hashlib.blake2b(data).digest()
        ):
            raise SigningError(
                "damaged", f"{what} or its signature was changed after it was signed: get both again"
            )
        subject = parse_subject(signature.comment)
        if subject.kind != "revocation":
            raise SigningError("wrong_name", f"{what} is signed as a {subject.kind}, not as a trust list")
        document = parse_trust_list(data)
        if (document.name, document.sequence) != (subject.name, subject.sequence):
            raise SigningError("wrong_name", f"{what} is not the trust list that its signature names")
        if any(entry.key_id == key.id for entry in document.revoked):
            raise SigningError(
                "revoked_key", f"{what} revokes the key that signed it: another trusted key must sign it"
            )
        self._check_sequence(record, subject, key.id)
        known = self._known(record)
        for new in document.new_keys():
            there = known.get(new.id)
            if there is not None and there.key != new:
                raise SigningError("damaged", f"{what} brings another key under the known id {new.id}")
            if there is not None and there.revoked is not None:
                raise SigningError("revoked_key", f"{what} brings key {new.id}, which was revoked")
        return document

    def _check_sequence(self, record: Record, subject: Subject | Verified, key_id: str) -> None:
        revoked = {entry.key_id for entry in record.revoked}
        counting = [
            sequence
            for signer, sequence in record.accepted(subject.kind, subject.name).items()
            if (signer == key_id if subject.kind == "revocation" else signer not in revoked)
        ]
        highest = max(counting, default=0)
        if subject.sequence < highest:
            raise SigningError(
                "older_sequence",
                f"this is {subject.name} number {subject.sequence}, older than number {highest}, which this "
                "box accepted before: going back by an old file is refused, for it may bring back old faults "
                f"({_at_hand(subject)})",
            )

    def _key(self, record: Record, key_id: str, what: str) -> PublicKey:
        known = self._known(record).get(key_id)
        if known is None:
            raise SigningError(
                "unknown_key",
                f"{what} is signed by key {key_id}, which this box does not trust. If you know the key's "
                f"owner, and the id from another source than this file, root may place the key in "
                f"{self._folders[-1] if self._folders else 'the trust folder'}",
            )
        if known.revoked is not None:
            reason = f" ({known.revoked})" if known.revoked else ""
            raise SigningError(
                "revoked_key",
                f"{what} is signed by key {key_id}, which was revoked{reason}: get one that is signed by a "
                "key that is still good",
            )
        return known.key

    def _known(self, record: Record) -> dict[str, TrustedKey]:
        known = self._roots()
        for number, entry in enumerate(record.lists, 1):
            # A list counts although its signer was revoked later: rotation goes on from key to key.
            signature = parse_signature(entry.signature.encode(), f"{self._path.name}, list {number}")
            data = entry.document.encode()
            signer = known.get(signature.key_id)
            if (
                signer is None
                or not signature.vouches_for_comment(signer.key)
                or not signature.vouches_for(signer.key, hashlib.blake2b(data).digest())
                or parse_subject(signature.comment).kind != "revocation"
            ):
                continue
            for key in parse_trust_list(data).new_keys():
                known.setdefault(key.id, TrustedKey(key=key, source=f"a trust list by key {signer.key.id}"))
        for revoked in record.revoked:
            if revoked.key_id in known:
                known[revoked.key_id] = msgspec.structs.replace(
                    known[revoked.key_id], revoked=revoked.reason or "no reason given"
                )
        return known

    def _roots(self) -> dict[str, TrustedKey]:
        known: dict[str, TrustedKey] = {}
        for folder in self._folders:
            for path in _key_files(folder):
                key = read_public_key(path)
                there = known.get(key.id)
                if there is not None and there.key != key:
                    raise SigningError(
                        "invalid_key", f"{path} and {there.source} are different keys with one id"
                    )
                known.setdefault(key.id, TrustedKey(key=key, source=str(path)))
        return known


def _at_hand(subject: Subject | Verified) -> str:
    """Say how to go back in order."""
    if subject.kind == "pack":
        return f"the version before is at hand with 'appliance rollback {subject.name}'"
    return "the previous release is at hand with 'appliance rollback'"


def read_list(path: Path) -> tuple[bytes, Signature]:
    """Read a trust list and its signature, neither of them checked. Raises SigningError."""
    signature = read_signature(path)
    return read_trust_list(path), signature


def _key_files(folder: Path) -> list[Path]:
    """Return the key files of a folder; what others than root or this user may write is refused."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith(PUBLIC_SUFFIX))
        for path in (folder, *paths):
            status = path.stat()
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & _WRITABLE_BY_OTHERS:
                raise SigningError(
                    "store", f"{path} may be written by others than root: keys from there are not trusted"
                )
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(folder):
            return []
        # A link to a key that is gone, also: it must not hide the other keys.
        place = error.filename or folder
        raise SigningError("store", f"cannot read the trusted keys in {place}: {error.strerror}") from error
    return paths


def trust_store(settings: Settings) -> TrustStore:
    """Return the trust store of this box: the tree's own keys, those of ``trust_dir``, the record."""
    return TrustStore(settings.trust_path, (tree() / BUILT_IN, settings.trust_dir))
