"""Trust lists: signed documents that revoke keys and bring new ones, ``NAME.trust.json`` and its signature.

Canonical JSON, never compressed: there is nothing to unpack, and a few hundred bytes are all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from appliance.disk import write_whole
from appliance.signing.errors import SigningError
from appliance.signing.files import read_small
from appliance.signing.keys import PublicKey, SecretKey, parse_public_line
from appliance.signing.signatures import MAX_SEQUENCE, Subject, sign_file

SUFFIX = ".trust.json"
# All lists have one name: their sequence tells the newer one.
NAME = "trust"
MAX_TRUST_LIST = 64 << 10

KeyId = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-F]{16}\Z")]
Sequence = Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQUENCE)]


class RevokedKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that is not to be trusted any more, and why."""

    key_id: KeyId
    reason: Annotated[str, msgspec.Meta(max_length=200)]


class TrustList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a trust list says. ``trusted`` holds public keys as ``PublicKey.line`` writes them."""

    schema: Literal[1] = 1
    kind: Literal["revocation"] = "revocation"
    name: Literal["trust"] = "trust"
    sequence: Sequence
    # Seconds since the epoch.
    created: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    revoked: Annotated[tuple[RevokedKey, ...], msgspec.Meta(max_length=64)] = ()
    trusted: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()

    def new_keys(self) -> tuple[PublicKey, ...]:
        """Return the keys that it brings. Raises SigningError when one is none."""
        return tuple(parse_public_line(line, "a key of the trust list") for line in self.trusted)


def encode_trust_list(document: TrustList) -> bytes:
    """Return the one form in which a list is written."""
    return msgspec.json.encode(document, order="sorted")


def parse_trust_list(data: bytes) -> TrustList:
    """Read a list, whose signature was checked before. Raises SigningError when it is not valid."""
    try:
        document = msgspec.json.decode(data, type=TrustList)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SigningError("damaged", f"the trust list is not valid: {error}") from error
    if encode_trust_list(document) != data:
        raise SigningError("damaged", "the trust list is not in canonical form")
    keys = document.new_keys()
    revoked = {entry.key_id for entry in document.revoked}
    if len({key.id for key in keys}) != len(keys) or revoked & {key.id for key in keys}:
        raise SigningError("damaged", "the trust list names a key twice")
    if not keys and not revoked:
        raise SigningError("damaged", "the trust list neither revokes nor brings a key")
    return document


def read_trust_list(path: Path) -> bytes:
    """Return the bytes of a list, at most ``MAX_TRUST_LIST``. Raises SigningError."""
    return read_small(path, MAX_TRUST_LIST, "damaged", "a trust list")


def write_trust_list(path: Path, document: TrustList, key: SecretKey) -> None:
    """Write a list and its signature beside it. Raises SigningError when it could not be accepted anywhere."""
    data = encode_trust_list(document)
    parse_trust_list(data)
    if any(entry.key_id == key.public.id for entry in document.revoked):
        raise SigningError(
            "revoked_key", "a key cannot revoke itself: sign the list with another trusted key"
        )
    try:
        write_whole(path, data, 0o644)
    except OSError as error:
        raise SigningError("store", f"cannot write {path}: {error.strerror}") from error
    sign_file(path, key, Subject(name=NAME, sequence=document.sequence, kind="revocation"))
