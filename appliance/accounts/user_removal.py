"""What a deleted user takes along, and what stays of its usage; inside write tasks."""

from __future__ import annotations

import sqlite_utils

from appliance.storage.usage_sums import ADD_TO_SUMS

# Usage records that one write changes: the next writer waits for some tens of milliseconds.
RECORDS_AT_ONCE = 5000

# Sums of older usage know nobody as user 0.
_ANONYMOUS_SUMS = f"""
INSERT INTO usage_quarters
SELECT quarter, 0, model, endpoint, requests, failures, prompt_tokens, completion_tokens, cost,
       kwh_min, kwh_max, kgco2eq_min, kgco2eq_max
FROM usage_quarters WHERE user_id = ?
{ADD_TO_SUMS}"""  # noqa: S608 - the text is ours


def remove_owned(db: sqlite_utils.Database, user_id: int) -> dict[str, list[int]]:
    """Delete a user's routers, with all their providers, and its providers elsewhere; return which."""
    routers = [row[0] for row in db.execute("SELECT id FROM routers WHERE user_id = ?", [user_id])]
    owned = "user_id = ? OR router_id IN (SELECT id FROM routers WHERE user_id = ?)"
    providers = [
        row[0]
        for row in db.execute(f"SELECT id FROM providers WHERE {owned}", [user_id, user_id])  # noqa: S608
    ]
    db.execute("DELETE FROM providers WHERE user_id = ?", [user_id])
    db.execute("DELETE FROM routers WHERE user_id = ?", [user_id])
    return {"routers": routers, "providers": providers}


def forget_counters(db: sqlite_utils.Database, user_id: int) -> None:
    """Leave the sums of a user's older usage to nobody, and drop what counts against its limits."""
    db.execute(_ANONYMOUS_SUMS, [user_id])
    db.execute("DELETE FROM usage_quarters WHERE user_id = ?", [user_id])
    db.execute("DELETE FROM limit_hits WHERE user_id = ?", [user_id])


def forget_records(db: sqlite_utils.Database, user_id: int) -> bool:
    """Empty the user of some usage records; tell whether there may be more."""
    changed: int = db.execute(
        "UPDATE usage SET user_id = NULL WHERE id IN (SELECT id FROM usage WHERE user_id = ? LIMIT ?)",
        [user_id, RECORDS_AT_ONCE],
    ).rowcount
    return changed == RECORDS_AT_ONCE
