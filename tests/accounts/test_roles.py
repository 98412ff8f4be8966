"""Roles in the store: replaced wholly or kept, undone wholly when refused, and never the last administrator's end."""

from __future__ import annotations

import msgspec
import pytest

from appliance.accounts.bootstrap import bootstrap
from appliance.accounts.errors import AccountError
from appliance.accounts.keys import Keyring
from appliance.accounts.roles import RoleChange, Roles, RouterLimit
from appliance.audit.log import SERVICE, AuditLog
from appliance.storage.database import Database

ADMINISTRATOR_ROLE = 1


@pytest.fixture(autouse=True)
def administrator(database: Database, keyring: Keyring) -> None:
    bootstrap(database, keyring, None)


@pytest.fixture
def roles(database: Database) -> Roles:
    return Roles(database, AuditLog(b"a" * 32))


@pytest.fixture
def router(database: Database) -> int:
    insert = "INSERT INTO routers (type, created_at, updated_at) VALUES ('text-generation', 0, 0)"
    return database.write_sync(lambda db: int(db.execute(insert).lastrowid or 0))


async def test_what_is_given_replaces_and_what_is_not_stays(roles: Roles, router: int) -> None:
    content = RoleChange(
        permissions=["read_metric", "admin"],
        limits=[RouterLimit(router, "rpd", 1), RouterLimit(router, "tpm", None)],
        default_limits={"rpm": 0},
    )
    made = await roles.create(SERVICE, "tester", content)
    await roles.update(SERVICE, made, RoleChange(limits=[RouterLimit(router, "rpm", 7)]))

    role = await roles.get(made)
    assert role.permissions == ["admin", "read_metric"]
    assert role.limits == [RouterLimit(router, "rpm", 7)]
    assert role.default_limits == {"rpm": 0}
    await roles.update(SERVICE, made, RoleChange(name="other", permissions=[], limits=[], default_limits={}))
    role = await roles.get(made)
    assert (role.name, role.permissions, role.limits, role.default_limits) == ("other", [], [], {})


async def test_a_refused_role_leaves_nothing_behind(database: Database, roles: Roles, router: int) -> None:
    content = RoleChange(
        permissions=["admin"], limits=[RouterLimit(router, "rpm", 1), RouterLimit(99, "rpm", 1)]
    )
    with pytest.raises(AccountError, match="Model router not found"):
        await roles.create(SERVICE, "tester", content)
    made = await roles.create(SERVICE, "tester", RoleChange(permissions=["read_metric"]))
    with pytest.raises(AccountError, match="Model router not found"):
        await roles.update(SERVICE, made, msgspec.structs.replace(content, name="renamed"))

    role = await roles.get(made)
    assert (role.name, role.permissions, role.limits) == ("tester", ["read_metric"], [])
    lines = database.read_sync(lambda db: db.execute("SELECT count(*) FROM audit").fetchone()[0])
    assert lines == 1


async def test_the_last_administrators_role_keeps_its_permission(roles: Roles) -> None:
    with pytest.raises(AccountError) as refused:
        await roles.update(SERVICE, ADMINISTRATOR_ROLE, RoleChange(name="x", permissions=["read_metric"]))

    assert refused.value.status == 409
    role = await roles.get(ADMINISTRATOR_ROLE)
    assert role.name == "administrator"
    assert "admin" in role.permissions


async def test_a_deleted_router_takes_its_limits_with_it(
    database: Database, roles: Roles, router: int
) -> None:
    made = await roles.create(SERVICE, "tester", RoleChange(limits=[RouterLimit(router, "rpm", 1)]))
    await database.write(lambda db: db.execute("DELETE FROM routers WHERE id = ?", [router]))

    assert (await roles.get(made)).limits == []


async def test_a_deleted_role_takes_its_limits_with_it(database: Database, roles: Roles, router: int) -> None:
    content = RoleChange(
        permissions=["admin"], limits=[RouterLimit(router, "rpm", 1)], default_limits={"rpm": 1}
    )
    made = await roles.create(SERVICE, "tester", content)
    await roles.delete(SERVICE, made)

    left = (
        "SELECT (SELECT count(*) FROM role_limits WHERE role_id = :id) + "
        "(SELECT count(*) FROM role_default_limits WHERE role_id = :id) + "
        "(SELECT count(*) FROM role_permissions WHERE role_id = :id)"
    )
    assert database.read_sync(lambda db: db.execute(left, {"id": made}).fetchone()[0]) == 0
