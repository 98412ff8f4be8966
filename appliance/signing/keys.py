"""Ed25519 keys in minisign's text formats, which the stock ``minisign`` reads and writes too.

A public key file is a comment line and the base64 of ``Ed``, 8 bytes of key id and 32 of key. A secret
key file holds ``Ed``, ``Sc`` (scrypt; two zeros: not encrypted), ``B2``, 32 bytes of salt, scrypt's two
limits, and under scrypt's stream the key id, the seed with the public key, and a BLAKE2b-256 of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from appliance.disk import write_whole
from appliance.signing.errors import Reason, SigningError
from appliance.signing.files import read_small

PUBLIC_SUFFIX = ".pub"
SECRET_SUFFIX = ".key"  # noqa: S105 - of a file name
MAX_KEY_FILE = 4096

_COMMENT = "untrusted comment: "
_ALGORITHM = b"Ed"
_SCRYPT = b"Sc"
_PLAIN = b"\x00\x00"
_CHECKSUM = b"B2"
_SECRET = struct.Struct("<2s2s2s32sQQ104s")
_CONTENTS = struct.Struct("<8s64s32s")
# libsodium's "sensitive" limits, as minisign writes them: scrypt over 1 GiB, some seconds.
SENSITIVE = (33_554_432, 1_073_741_824)
# What a secret key file may ask for at most.
_MAX_LIMITS = (1 << 28, 1 << 31)


class PublicKey(msgspec.Struct, frozen=True):
    """A public key: the 32 bytes of Ed25519 and the 8 random ones that name it."""

    id_bytes: bytes
    key: bytes

    @property
    def id(self) -> str:
        """The key's id as minisign shows it: 16 hexadecimal digits."""
        return self.id_bytes[::-1].hex().upper()

    def line(self) -> str:
        """Return the one line that says it all: what ``minisign -P`` takes."""
        return base64.b64encode(_ALGORITHM + self.id_bytes + self.key).decode()

    def text(self) -> str:
        """Return the contents of the public key file."""
        return f"{_COMMENT}minisign public key {self.id}\n{self.line()}\n"

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Tell whether ``signature`` (64 bytes) over ``message`` is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


class SecretKey:
    """A secret key, decrypted. It lives in memory only; ``write_secret_key`` is the way to disk."""

    def __init__(self, id_bytes: bytes, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.seed = seed
        self.public = PublicKey(id_bytes, self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> SecretKey:
        """Return a new key of the system's randomness."""
        return cls(secrets.token_bytes(8), secrets.token_bytes(32))

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature over ``message``."""
        return self._key.sign(message)


def strict_base64(text: str, length: int, reason: Reason, what: str) -> bytes:
    """Decode base64 that has exactly one spelling: ``length`` bytes, nothing between or behind.

    Raises SigningError.
    """
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise SigningError(reason, f"{what} is damaged: not base64") from error
    # The last digit of base64 may have bits that mean nothing: they are to be zero.
    if len(data) != length or base64.b64encode(data).decode() != text:
        raise SigningError(reason, f"{what} is damaged: not the {length} bytes that it should be")
    return data


def parse_public_line(line: str, what: str = "the public key") -> PublicKey:
    """Read the line that ``PublicKey.line`` gives. Raises SigningError."""
    data = strict_base64(line, 42, "invalid_key", what)
    if data[:2] != _ALGORITHM:
        raise SigningError("invalid_key", f"{what} is not an Ed25519 key of minisign's")
    return PublicKey(data[2:10], data[10:])


def read_public_key(path: Path) -> PublicKey:
    """Read a public key file. Raises SigningError, which names the file."""
    data = read_small(path, MAX_KEY_FILE, "invalid_key", "a public key")
    lines = _lines(data, path)
    if len(lines) != 2 or not lines[0].startswith(_COMMENT):
        raise SigningError(
            "invalid_key", f"{path} is not a public key file: a comment line and a line of base64"
        )
    return parse_public_line(lines[1], str(path))


def write_public_key(path: Path, key: PublicKey) -> None:
    """Write a public key file (0644). Raises SigningError; nothing that is there is replaced."""
    _write_new(path, key.text().encode(), 0o644)


def write_secret_key(
    path: Path, key: SecretKey, password: str | None, limits: tuple[int, int] = SENSITIVE
) -> None:
    """Write a secret key file (0600), encrypted unless ``password`` is None; nothing is replaced.

    ``limits`` are libsodium's for scrypt: operations and bytes of memory. Raises SigningError.
    """
    public = key.public
    checksum = _checksum(public.id_bytes, key.seed + public.key)
    contents = _CONTENTS.pack(public.id_bytes, key.seed + public.key, checksum)
    if password is None:
        data = _SECRET.pack(_ALGORITHM, _PLAIN, _CHECKSUM, bytes(32), 0, 0, contents)
        comment = "minisign secret key (not encrypted)"
    else:
        salt = secrets.token_bytes(32)
        data = _SECRET.pack(
            _ALGORITHM, _SCRYPT, _CHECKSUM, salt, *limits, _masked(contents, password, salt, limits)
        )
        comment = "minisign encrypted secret key"
    _write_new(path, f"{_COMMENT}{comment}\n{base64.b64encode(data).decode()}\n".encode(), 0o600)


def is_encrypted(path: Path) -> bool:
    """Tell whether a secret key file wants a password. Raises SigningError when it is none."""
    return _read_secret(path)[1] == _SCRYPT


def read_secret_key(path: Path, password: str | None) -> SecretKey:
    """Read a secret key file; ``password`` is not looked at when it is not encrypted.

    Raises SigningError: not such a file, or a wrong password.
    """
    _, kdf, _, salt, operations, memory, contents = _read_secret(path)
    if kdf == _SCRYPT:
        if password is None:
            raise SigningError("invalid_key", f"{path} is encrypted: it needs its password")
        if operations > _MAX_LIMITS[0] or memory > _MAX_LIMITS[1]:
            raise SigningError("invalid_key", f"{path} asks for more memory or time than any key needs")
        contents = _masked(contents, password, salt, (operations, memory))
    id_bytes, pair, checksum = _CONTENTS.unpack(contents)
    # minisign leaves the checksum of keys without password at zero.
    known = [_checksum(id_bytes, pair)] + ([bytes(32)] if kdf == _PLAIN else [])
    key = SecretKey(id_bytes, pair[:32])
    if not any(hmac.compare_digest(checksum, each) for each in known) or pair[32:] != key.public.key:
        wrong = "the password is wrong, or the file is damaged" if kdf == _SCRYPT else "the file is damaged"
        raise SigningError("invalid_key", f"cannot use {path}: {wrong}")
    return key


def _read_secret(path: Path) -> tuple[bytes, bytes, bytes, bytes, int, int, bytes]:
    lines = _lines(read_small(path, MAX_KEY_FILE, "invalid_key", "a secret key"), path)
    if len(lines) != 2 or not lines[0].startswith(_COMMENT):
        raise SigningError("invalid_key", f"{path} is not a secret key file of minisign's")
    fields = _SECRET.unpack(strict_base64(lines[1], _SECRET.size, "invalid_key", str(path)))
    if fields[0] != _ALGORITHM or fields[1] not in (_SCRYPT, _PLAIN) or fields[2] != _CHECKSUM:
        raise SigningError("invalid_key", f"{path} is not a secret key file of minisign's")
    return fields


def _lines(data: bytes, path: Path) -> list[str]:
    try:
        return data.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise SigningError("invalid_key", f"{path} is not a key file: not text") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        write_whole(path, data, mode, replace=False)
    except FileExistsError as error:
        raise SigningError("invalid_key", f"{path} is there already: a key is never overwritten") from error
    except OSError as error:
        raise SigningError("invalid_key", f"cannot write {path}: {error.strerror}") from error


def _checksum(id_bytes: bytes, pair: bytes) -> bytes:
    return hashlib.blake2b(_ALGORITHM + id_bytes + pair, digest_size=32).digest()


def _masked(contents: bytes, password: str, salt: bytes, limits: tuple[int, int]) -> bytes:
    """Put scrypt's stream over the contents, or take it off."""
    n, r, p = _scrypt_parameters(*limits)
    stream = Scrypt(salt=salt, length=len(contents), n=n, r=r, p=p).derive(password.encode())
    return bytes(one ^ other for one, other in zip(contents, stream, strict=True))


def _scrypt_parameters(operations: int, memory: int) -> tuple[int, int, int]:
    """Return scrypt's N, r, p for libsodium's two limits, as libsodium chooses them."""
    operations = max(operations, 32_768)
    r = 8
    if operations < memory // 32:
        most = operations // (r * 4)
        return _power_above(most // 2), r, 1
    n = _power_above(memory // (r * 128) // 2)
    return n, r, max(1, min(operations // 4 // n, 0x3FFFFFFF) // r)


def _power_above(half: int) -> int:
    n = 2
    while n <= half:
        n *= 2
    return n
