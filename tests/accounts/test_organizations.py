"""Organizations in the store: every change with its audit line, none without."""

from __future__ import annotations

import pytest

from appliance.accounts.errors import AccountError
from appliance.accounts.organizations import Organizations
from appliance.audit.log import SERVICE, AuditLog
from appliance.storage.database import Database


@pytest.fixture
def organizations(database: Database) -> Organizations:
    return Organizations(database, AuditLog(b"a" * 32))


def audit_lines(database: Database) -> list[tuple[str, str]]:
    return database.read_sync(
        lambda db: [tuple(row) for row in db.execute("SELECT action, target FROM audit ORDER BY id")]
    )


async def test_every_change_is_a_line_of_the_audit_log(
    database: Database, organizations: Organizations
) -> None:
    made = await organizations.create(SERVICE, "city")
    await organizations.rename(SERVICE, made, "town")
    await organizations.delete(SERVICE, made)

    actions = ["organization.create", "organization.update", "organization.delete"]
    assert audit_lines(database) == [(action, str(made)) for action in actions]


async def test_a_refused_change_leaves_no_line(database: Database, organizations: Organizations) -> None:
    first = await organizations.create(SERVICE, "city")
    second = await organizations.create(SERVICE, "town")
    written = audit_lines(database)

    for refused in (
        organizations.create(SERVICE, "city"),
        organizations.rename(SERVICE, second, "city"),
        organizations.rename(SERVICE, 99, "village"),
        organizations.delete(SERVICE, 99),
    ):
        with pytest.raises(AccountError):
            await refused
    assert audit_lines(database) == written
    assert (await organizations.get(first)).name == "city"
    assert (await organizations.get(second)).name == "town"


async def test_an_id_is_never_given_twice(organizations: Organizations) -> None:
    first = await organizations.create(SERVICE, "city")
    await organizations.delete(SERVICE, first)

    assert await organizations.create(SERVICE, "city") > first
