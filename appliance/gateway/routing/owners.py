"""Who owns routers and providers: a user, or the box itself (NULL in the store)."""

from __future__ import annotations

import sqlite_utils

from appliance.accounts.keys import Account

_FIRST_ADMINISTRATOR = """
SELECT min(u.id) FROM users u JOIN role_permissions p ON p.role_id = u.role_id WHERE p.permission = 'admin'
"""


def owner_of(account: Account) -> int | None:
    """Return the owner of what an account makes; what the bootstrap key makes is the box's own."""
    return None if account.kind == "bootstrap" else account.user_id


def first_administrator(db: sqlite_utils.Database) -> int:
    """Return the user who stands for the box; 0 when there is no administrator."""
    return int(db.execute(_FIRST_ADMINISTRATOR).fetchone()[0] or 0)
