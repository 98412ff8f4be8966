"""The set-up code: what the first administrator of a box proves that he can read its console with.

One code lives at a time, half an hour long, in the service's memory and there as an HMAC only: a start makes another
while the box has no administrator who could get in.
"""

from __future__ import annotations

import hmac
import secrets
import time

import msgspec
import sqlite_utils

from appliance.accounts.bootstrap import administrator_role_of
from appliance.accounts.errors import AccountError, PermissionDeniedError
from appliance.accounts.keys import Keyring, new_key
from appliance.accounts.passwords import hash_password
from appliance.accounts.throttle import Throttle, TooManyAttemptsError
from appliance.accounts.users import LONGEST_EMAIL, LONGEST_PASSWORD, RESERVED_EMAIL, require_free
from appliance.audit.log import Actor, AuditLog
from appliance.clock import now_ms
from appliance.storage.database import Database

CODE_SECONDS = 1800
# Without what is read for another: no I, L, O, U, 0, 1. Twelve of thirty are 58 bits.
ALPHABET = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
GROUPS, GROUP_LENGTH = 3, 4
LONGEST_CODE = 64
SHORTEST_PASSWORD = 8
KEY_NAME = "setup"
# No e-mail has a NUL: the failures of codes are counted apart from those of logins.
_THROTTLED_AS = "\0setup"

# An administrator who can get in: with a password, or by a key that lives (a login's key ends by itself).
_USABLE = """
SELECT 1 FROM users u JOIN role_permissions p ON p.role_id = u.role_id AND p.permission = 'admin'
WHERE (u.expires_at IS NULL OR u.expires_at > :now)
  AND (u.password_hash IS NOT NULL OR EXISTS (
    SELECT 1 FROM keys k WHERE k.user_id = u.id AND k.kind <> 'session'
    AND (k.expires_at IS NULL OR k.expires_at > :now)))
LIMIT 1
"""


class FirstAdministrator(msgspec.Struct, frozen=True):
    """What the set-up made: a user and its key, which is shown this once."""

    user_id: int
    key_id: int
    key: str


class SetupDoneError(AccountError):
    """The box has an administrator."""

    status = 409
    code = "setup_done"

    def __init__(self) -> None:
        super().__init__("This box is set up already: its administrators make further users and keys.")


class WrongCodeError(AccountError):
    """The code is not the one that the box shows."""

    status = 401
    type = "authentication_error"
    code = "invalid_setup_code"


class SetupCodes:
    """The code of a running service. Used on the event loop only, but for ``needed`` and ``new_code``."""

    def __init__(self, database: Database, keyring: Keyring, audit: AuditLog) -> None:
        self._database = database
        self._keyring = keyring
        self._audit = audit
        self._throttle = Throttle(database, keyring)
        self._digest: bytes | None = None
        self._ends = 0.0

    def needed(self) -> bool:
        """Tell whether the box has no administrator who can get in."""
        return not self._database.read_sync(_has_usable_administrator)

    def new_code(self) -> str:
        """Make the code, in place of the one before, and return it. Raises SetupDoneError."""
        if not self.needed():
            raise SetupDoneError
        # Here, where the service has not read the roles yet: the administrator finds its limits known.
        self._database.write_sync(administrator_role_of)
        code = "-".join("".join(secrets.choice(ALPHABET) for _ in range(GROUP_LENGTH)) for _ in range(GROUPS))
        self._digest = self._keyring.digest(_plain(code))
        self._ends = time.monotonic() + CODE_SECONDS
        return code

    async def redeem(self, code: str, email: str, password: str, source: str) -> FirstAdministrator:
        """Make the first administrator for who knows the code; ``source`` is the address it came from.

        Raises SetupDoneError (409), WrongCodeError (401) for a wrong code or one that has ended,
        TooManyAttemptsError (429) after several, and what ``make`` raises.
        """
        if not self.needed():
            raise SetupDoneError
        try:
            async with self._throttle.turn(_THROTTLED_AS, source) as attempt:
                if not self._is_right(code):
                    line = Actor(None, "unknown", source)

                    def write(db: sqlite_utils.Database) -> None:
                        attempt.failed(db)
                        self._audit.append(db, line, "setup.refuse", "code")

                    await self._database.write(write)
                    raise WrongCodeError(
                        "This is not the box's set-up code, or its half hour is over. The console and the journal "
                        "show it; `appliance setup --new-code`, or a restart, makes another."
                    )
                made = await self.make(email, password, Actor(None, "setup code", source))
                await self._database.write(attempt.succeeded)
                return made
        except TooManyAttemptsError as error:
            seconds = error.retry_after or 1
            raise TooManyCodesError(seconds) from None

    async def make(self, email: str, password: str, actor: Actor) -> FirstAdministrator:
        """Make the first administrator without a code: for who commands the box.

        Raises SetupDoneError (409), AccountError (400) for a password or e-mail that cannot be, (409) for an e-mail
        that somebody has, PermissionDeniedError (403) for the reserved one, OverloadedError (503).
        """
        check_password(password)
        check_email(email)
        if not self.needed():
            raise SetupDoneError
        password_hash = await hash_password(password)
        key = new_key()

        def create(db: sqlite_utils.Database) -> FirstAdministrator:
            # Here it is decided: of two at once, the second finds the first.
            if _has_usable_administrator(db):
                raise SetupDoneError
            require_free(db, email)
            now = now_ms()
            cursor = db.execute(
                "INSERT INTO users (email, name, password_hash, role_id, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [email, "administrator", password_hash, administrator_role_of(db), now, now],
            )
            user_id = int(cursor.lastrowid or 0)
            key_id = self._keyring.insert(db, user_id, KEY_NAME, key, kind="bootstrap")
            self._audit.append(db, actor, "user.bootstrap", str(user_id), {"email": email})
            return FirstAdministrator(user_id, key_id, key)

        made = await self._database.write(create)
        self._digest = None
        return made

    def _is_right(self, code: str) -> bool:
        digest = self._keyring.digest(_plain(code))
        expected = self._digest
        if expected is None or time.monotonic() >= self._ends:
            return False
        return hmac.compare_digest(digest, expected)


class TooManyCodesError(AccountError):
    """Too many codes were wrong; ``retry_after`` says when the next may be tried."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many wrong set-up codes. Try again in {seconds} seconds.", retry_after=seconds)


def check_password(password: str) -> None:
    """Refuse a password that nobody should have who may do everything. Raises AccountError (400)."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise AccountError(
            f"the first administrator's password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters",
            param="password",
        )


def check_email(email: str) -> None:
    """Refuse what cannot be a user's e-mail. Raises AccountError (400), PermissionDeniedError (403)."""
    if not 1 <= len(email) <= LONGEST_EMAIL or not email.isprintable() or email != email.strip():
        raise AccountError(f"an e-mail has 1 to {LONGEST_EMAIL} printable characters", param="email")
    if email == RESERVED_EMAIL:
        raise PermissionDeniedError("Reserved email.")


def _has_usable_administrator(db: sqlite_utils.Database) -> bool:
    return db.execute(_USABLE, {"now": now_ms()}).fetchone() is not None


def _plain(code: str) -> str:
    """Return a code as it is compared: small letters, blanks and dashes do not matter."""
    kept = code[:LONGEST_CODE].upper()
    return "setup:" + "".join(character for character in kept if character in ALPHABET)
