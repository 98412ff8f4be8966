"""The box keeps an administrator: nobody may lock themselves and everyone else out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlite_utils

from appliance.accounts.errors import AccountError

# An administrator whose account ends some day does not count: the box would be left without one then.
_LASTING = """
SELECT 1 FROM users u JOIN role_permissions p ON p.role_id = u.role_id
WHERE p.permission = 'admin' AND u.expires_at IS NULL LIMIT 1
"""


@contextmanager
def kept_administrator(db: sqlite_utils.Database) -> Iterator[None]:
    """Refuse, inside a write task, the changes of the block when they leave no administrator that lasts.

    Raises AccountError (409), which undoes them.
    """
    before = _has_one(db)
    yield
    if before and not _has_one(db):
        raise AccountError("The box must keep an administrator whose account does not expire.", status=409)


def _has_one(db: sqlite_utils.Database) -> bool:
    return db.execute(_LASTING).fetchone() is not None
