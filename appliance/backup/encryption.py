"""Encryption of a stream, in the format age v1 (age-encryption.org/v1): stock ``age -d -i KEY`` opens it.

A header of text wraps a random file key for each recipient (X25519, HKDF-SHA-256, ChaCha20-Poly1305) under a
MAC; the payload is chunks of 64 KiB, each sealed under its number and whether it is the last. A chunk that was
changed, moved or left out does not open, and a file that was cut short has no last one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import itertools
import secrets
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.backup.errors import BackupError
from appliance.backup.keys import KEY_BYTES, Identity, Recipient

VERSION = b"age-encryption.org/v1"
CHUNK = 64 << 10
TAG = 16

_LABEL = b"age-encryption.org/v1/X25519"
_STANZA = b"-> X25519 "
_END = b"---"
_FILE_KEY = 16
_NONCE = 16
_LONGEST_LINE = 200
_MOST_LINES = 200


class Sink(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Take some."""
        ...


class EncryptingWriter:
    """Writes what it is given to ``sink``, encrypted to every one of ``recipients``."""

    def __init__(self, sink: Sink, recipients: Sequence[Recipient]) -> None:
        """Write the header."""
        file_key, nonce = secrets.token_bytes(_FILE_KEY), secrets.token_bytes(_NONCE)
        header = VERSION + b"\n" + b"".join(_wrapped(file_key, each) for each in recipients) + _END
        sink.write(header + b" " + _base64(_mac(file_key, header)) + b"\n" + nonce)
        self._sink = sink
        self._cipher = ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
        self._number = 0
        self._buffer = bytearray()

    def write(self, data: bytes, /) -> None:
        """Take bytes; what fills no chunk waits for more."""
        self._buffer += data
        # A full chunk waits too: it may be the last.
        while len(self._buffer) > CHUNK:
            self._seal(CHUNK, last=False)

    def finish(self) -> None:
        """Write the last chunk."""
        self._seal(len(self._buffer), last=True)

    def _seal(self, size: int, *, last: bool) -> None:
        piece = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        self._sink.write(self._cipher.encrypt(_chunk_nonce(self._number, last=last), piece, None))
        self._number += 1


class DecryptingReader:
    """The decrypted contents of ``file``, which is read from where it stands to its very end."""

    def __init__(self, file: BinaryIO, identities: Sequence[Identity]) -> None:
        """Open the header. Raises BackupError when no identity fits, or the header is damaged."""
        lines = list(_header_lines(file))
        header = b"\n".join(lines[:-1]) + b"\n" + _END
        file_key = _file_key(lines[1:-1], identities)
        mac = _unbase64(lines[-1].removeprefix(_END + b" "))
        if mac is None or not hmac.compare_digest(mac, _mac(file_key, header)):
            raise BackupError("the backup is damaged: its header was changed")
        nonce = file.read(_NONCE)
        if len(nonce) != _NONCE:
            raise BackupError("the backup is cut short")
        self._file = file
        self._cipher = ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
        self._number = 0
        self._next = file.read(CHUNK + TAG)
        self._ended = False
        self._buffer = bytearray()

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer only at the end. Raises BackupError for damage and a missing end."""
        while len(self._buffer) < size and not self._ended:
            self._open()
        piece = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return piece

    def _open(self) -> None:
        sealed = self._next
        self._next = self._file.read(CHUNK + TAG) if len(sealed) == CHUNK + TAG else b""
        last = not self._next
        try:
            piece = self._cipher.decrypt(_chunk_nonce(self._number, last=last), sealed, None)
        except (InvalidTag, ValueError) as error:
            where = "it is cut short, or was changed near its end" if last else "it was changed"
            raise BackupError(f"the backup is damaged: {where}") from error
        if last and not piece and self._number:
            raise BackupError("the backup is damaged: its last chunk is empty")
        self._number += 1
        self._ended = last
        self._buffer += piece


def _header_lines(file: BinaryIO) -> Iterator[bytes]:
    for number in range(_MOST_LINES):
        line = file.readline(_LONGEST_LINE + 1)
        if not line.endswith(b"\n") or (number == 0 and line != VERSION + b"\n"):
            break
        yield line[:-1]
        if line.startswith(_END):
            return
    raise BackupError("the backup is damaged: it has no whole header")


def _wrapped(file_key: bytes, recipient: Recipient) -> bytes:
    ephemeral = X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes_raw()
    cipher = _wrapping(ephemeral.exchange(recipient), share, recipient)
    return _STANZA + _base64(share) + b"\n" + _base64(cipher.encrypt(bytes(12), file_key, None)) + b"\n"


def _file_key(lines: Sequence[bytes], identities: Sequence[Identity]) -> bytes:
    """Return the key that one of the identities opens. Stanzas of other kinds are passed over."""
    for head, body in itertools.pairwise(lines):
        share = _unbase64(head.removeprefix(_STANZA)) if head.startswith(_STANZA) else None
        sealed = _unbase64(body)
        if share is None or sealed is None or len(share) != KEY_BYTES or len(sealed) != _FILE_KEY + TAG:
            continue
        for identity in identities:
            try:
                shared = identity.exchange(X25519PublicKey.from_public_bytes(share))
                cipher = _wrapping(shared, share, identity.public_key())
                return cipher.decrypt(bytes(12), sealed, None)
            except (InvalidTag, ValueError):  # another key, or a share that gives zero
                continue
    if not identities:
        raise BackupError("the backup is encrypted: give the key that opens it (--identity FILE)")
    raise BackupError("the backup is encrypted to another key: give the one that opens it (--identity FILE)")


def _wrapping(shared: bytes, share: bytes, recipient: Recipient) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(_derived(shared, share + recipient.public_bytes_raw(), _LABEL))


def _mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derived(file_key, b"", b"header"), header, "sha256")


def _derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose).derive(key)


def _chunk_nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if last else b"\x00")


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _unbase64(text: bytes) -> bytes | None:
    """Return the bytes of canonical base64 without padding, None for anything else."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if _base64(data) == text else None
