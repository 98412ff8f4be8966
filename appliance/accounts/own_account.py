"""What users may change about themselves: not their role, budget, organization or expiry."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlite_utils

from appliance.accounts.errors import AccountError, PermissionDeniedError, TakenEmailError
from appliance.accounts.keys import end_sessions
from appliance.accounts.login import Logins, WrongPasswordError
from appliance.accounts.passwords import hash_password
from appliance.accounts.users import RESERVED_EMAIL, require_free
from appliance.audit.log import Actor, AuditLog
from appliance.clock import now_ms
from appliance.storage.database import Database


class OwnChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a user shall be; None keeps. ``current_password`` proves who asks."""

    email: str | None = None
    name: str | None = None
    password: str | None = None
    current_password: str | None = None


async def change_own_account(
    database: Database, audit: AuditLog, logins: Logins, actor: Actor, user_id: int, change: OwnChange
) -> None:
    """Change a user as it asks itself; a new password ends its sessions.

    Another password or e-mail needs the present password, when there is one. Raises PermissionDeniedError (403)
    for the reserved e-mail, WrongPasswordError (401), TooManyAttemptsError (429), AccountError: 404 for a user
    that is gone; TakenEmailError (409); OverloadedError (503).
    """
    if change.email == RESERVED_EMAIL:
        raise PermissionDeniedError("Reserved email.")
    email, before = await database.read(lambda db: _email_and_hash(db, user_id))
    guarded = change.password is not None or change.email not in (None, email)
    if change.current_password:
        before = await logins.check(user_id, change.current_password, actor.source)
    elif guarded and before is not None:
        raise WrongPasswordError
    password_hash = None if change.password is None else await hash_password(change.password)

    def update(db: sqlite_utils.Database) -> None:
        _, now_stored = _email_and_hash(db, user_id)
        if guarded and now_stored != before:  # another password since: the proof no longer holds
            raise WrongPasswordError
        if change.email is not None:
            require_free(db, change.email, user_id)
        db.execute(
            "UPDATE users SET email = ifnull(:email, email), name = ifnull(:name, name), "
            "password_hash = ifnull(:password_hash, password_hash), updated_at = :now WHERE id = :id",
            {
                "email": change.email,
                "name": change.name,
                "password_hash": password_hash,
                "now": now_ms(),
                "id": user_id,
            },
        )
        details: dict[str, Any] = {
            name: value
            for name, value in (("email", change.email), ("name", change.name))
            if value is not None
        }
        if password_hash is not None:
            end_sessions(db, user_id)
            details["password_changed"] = True
        audit.append(db, actor, "user.update", str(user_id), details)

    if change.email in (None, email):
        await database.write(update)
        return
    # Who else has an account is not to be tried out: a taken e-mail counts like a wrong password.
    async with logins.throttle.turn(f"the e-mails that {user_id} asks for", actor.source) as attempt:
        try:
            await database.write(update)
        except TakenEmailError:
            await database.write(attempt.failed)
            raise


def _email_and_hash(db: sqlite_utils.Database, user_id: int) -> tuple[str, str | None]:
    row = db.execute("SELECT email, password_hash FROM users WHERE id = ?", [user_id]).fetchone()
    if row is None:
        raise AccountError("User not found.", status=404)
    return row[0], row[1]
