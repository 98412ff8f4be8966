"""The box's secret and the keys that derive from it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from appliance.accounts.errors import AccountError
from appliance.disk import read_beginning, write_whole

SECRET_BYTES = 32
# Of a file of another length, so much is read.
LONGEST_FILE = 1024


def has_secret(path: Path) -> bool:
    """Return whether the secret is there. Raises AccountError when this user may not read it."""
    try:
        return read_beginning(path, 0) == b""
    except PermissionError:
        raise AccountError(
            f"{path} cannot be read by the user that the data belong to, as whom this runs: give it the file"
        ) from None
    except OSError:
        return False


def load_secret(path: Path) -> bytes:
    """Read the secret, or make it at first boot (mode 0600, on disk before it is used).

    Raises AccountError when it cannot be read, or has another length: a truncated secret would lock out every key.
    """
    try:
        secret = read_beginning(path, LONGEST_FILE)
    except FileNotFoundError:
        return _create(path)
    except OSError as error:
        raise AccountError(f"cannot read the secret {path}: {error.strerror}") from error
    if len(secret) != SECRET_BYTES:
        raise AccountError(
            f"{path} has {len(secret)} bytes instead of {SECRET_BYTES}: restore it from a backup"
        )
    return secret


def derive(secret: bytes, purpose: str) -> bytes:
    """Derive a 32-byte key for one purpose: HKDF-SHA-256 (RFC 5869), no salt, info = ``purpose``."""
    extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, purpose.encode() + b"\x01", hashlib.sha256)


def _create(path: Path) -> bytes:
    secret = secrets.token_bytes(SECRET_BYTES)
    write_whole(path, secret, 0o600)
    return secret
