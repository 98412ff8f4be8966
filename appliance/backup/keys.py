"""The keys that backups are encrypted to: X25519, written as age writes them (Bech32, BIP 173).

``age1…`` is the public key, for the box's settings; ``AGE-SECRET-KEY-1…`` the secret one, which opens the
backups and belongs elsewhere. A box has one more by itself, derived from its secret, so that it can check and
try its own backups; when the box is lost, so is that key, and the operator's opens them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from appliance.accounts.secret import derive
from appliance.backup.errors import BackupError
from appliance.disk import read_beginning

PUBLIC, SECRET = "age", "age-secret-key-"
KEY_BYTES = 32
PURPOSE = "backup identity"
LARGEST_FILE = 1 << 16

_CHARACTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM = 6

Recipient = X25519PublicKey
Identity = X25519PrivateKey


def new_identity() -> Identity:
    """Return a new secret key."""
    return X25519PrivateKey.generate()


def box_identity(secret: bytes) -> Identity:
    """Return the key by which a box opens its own backups; ``secret`` is the box's, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(derive(secret, PURPOSE))


def public_text(recipient: Recipient) -> str:
    """Return a public key as ``age1…``, 62 characters."""
    return _encode(PUBLIC, recipient.public_bytes_raw())


def secret_text(identity: Identity) -> str:
    """Return a secret key as ``AGE-SECRET-KEY-1…``."""
    return _encode(SECRET, identity.private_bytes_raw()).upper()


def parse_recipient(text: str) -> Recipient:
    """Read a public key. Raises BackupError."""
    data = _decode(text.strip(), PUBLIC)
    if data is None:
        raise BackupError(
            "this is no public key for backups: one begins with age1 (make a pair: appliance backup keygen)"
        )
    return X25519PublicKey.from_public_bytes(data)


def read_identities(path: Path) -> list[Identity]:
    """Read the secret keys in a file: one a line, lines with # are comments. Raises BackupError."""
    try:
        text = read_beginning(path, LARGEST_FILE + 1)
    except OSError as error:
        raise BackupError(f"cannot read the key file {path}: {error.strerror}") from error
    try:
        lines = text.decode("ascii").splitlines()
    except UnicodeDecodeError:
        lines = ["?"]
    return list(_identities(path, lines))


def _identities(path: Path, lines: Iterable[str]) -> Iterable[Identity]:
    found = False
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        data = _decode(line.strip(), SECRET)
        if data is None:
            # Never the line itself: it may be a secret.
            raise BackupError(f"{path} is no key file: its keys begin with AGE-SECRET-KEY-1")
        found = True
        yield X25519PrivateKey.from_private_bytes(data)
    if not found:
        raise BackupError(f"{path} holds no key")


def _encode(prefix: str, data: bytes) -> str:
    values = _regroup(data, 8, 5)
    remainder = _polymod([*_expanded(prefix), *values, *[0] * _CHECKSUM]) ^ 1
    values += [(remainder >> 5 * (_CHECKSUM - 1 - index)) & 31 for index in range(_CHECKSUM)]
    return f"{prefix}1" + "".join(_CHARACTERS[value] for value in values)


def _decode(text: str, prefix: str) -> bytes | None:
    """Return the 32 bytes of a key; None when the text is none of this kind."""
    if text not in (text.lower(), text.upper()):
        return None
    start, _, rest = text.lower().rpartition("1")
    if start != prefix or len(rest) <= _CHECKSUM or set(rest) - set(_CHARACTERS):
        return None
    values = [_CHARACTERS.index(character) for character in rest]
    if _polymod([*_expanded(prefix), *values]) != 1:
        return None
    bits = len(values[:-_CHECKSUM]) * 5
    number = 0
    for value in values[:-_CHECKSUM]:
        number = number << 5 | value
    spare = bits - KEY_BYTES * 8
    if not 0 <= spare < 5 or number & ((1 << spare) - 1):
        return None
    return (number >> spare).to_bytes(KEY_BYTES, "big")


def _regroup(data: bytes, width: int, wanted: int) -> list[int]:
    bits = len(data) * width
    spare = -bits % wanted
    number = int.from_bytes(data, "big") << spare
    count = (bits + spare) // wanted
    return [(number >> wanted * (count - 1 - index)) & ((1 << wanted) - 1) for index in range(count)]


def _expanded(prefix: str) -> list[int]:
    return [*(ord(each) >> 5 for each in prefix), 0, *(ord(each) & 31 for each in prefix)]


def _polymod(values: Iterable[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for index, each in enumerate(_GENERATOR):
            checksum ^= each if top >> index & 1 else 0
    return checksum
