"""Passwords: argon2id with OWASP's parameters, two at a time in threads of their own."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from appliance.errors import OverloadedError

log = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1
SALT_BYTES = 16
HASH_BYTES = 32

# Each takes 19 MiB and a core for some 50 ms: more at a time would take them from the models.
AT_ONCE = 2
# Those in line behind these are done within two seconds, on a slow box too.
LONGEST_QUEUE = 32

_PARAMETERS = f"$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}$"


def _unpadded(content: bytes) -> str:
    return base64.b64encode(content).decode().rstrip("=")


# What is checked where there is no password, so that it takes as long as where there is one.
_NOBODY = f"{_PARAMETERS}{_unpadded(bytes(SALT_BYTES))}${_unpadded(bytes(HASH_BYTES))}"


class _Hashing:
    """The threads, and how much waits for them. Used on the event loop only."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="password")
        self._accepted = 0

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` in its turn. Raises OverloadedError when too many are in line."""
        if self._accepted >= AT_ONCE + LONGEST_QUEUE:
            raise OverloadedError("Too many passwords are being checked; try again.", retry_after=2)
        self._accepted += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except MemoryError:
            raise OverloadedError("There is no memory to check a password now; try again.") from None
        finally:
            self._accepted -= 1


_hashing = _Hashing()


async def hash_password(password: str) -> str:
    """Return a password's hash as a PHC string with a salt of its own.

    Raises OverloadedError (503) when too many passwords wait to be hashed.
    """
    return await _hashing.run(lambda: _derive(password))


async def verify_password(password: str, password_hash: str | None) -> bool:
    """Tell whether a password has this hash. Without a hash the answer is no, after as much work.

    Raises OverloadedError (503) when too many passwords wait to be checked.
    """
    return await _hashing.run(lambda: _matches(password, password_hash or _NOBODY)) and bool(password_hash)


def is_outdated(password_hash: str) -> bool:
    """Tell whether a hash was made with other parameters than today's."""
    return not password_hash.startswith(_PARAMETERS)


def _derive(password: str) -> str:
    function = Argon2id(
        salt=os.urandom(SALT_BYTES),
        length=HASH_BYTES,
        iterations=PASSES,
        lanes=LANES,
        memory_cost=MEMORY_KIB,
    )
    return function.derive_phc_encoded(_encoded(password))


def _matches(password: str, password_hash: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(_encoded(password), password_hash)
    except InvalidKey:
        return False
    except ValueError:
        log.exception("a password's hash in the store is damaged; an administrator has to set a new password")
        return False
    return True


def _encoded(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")
