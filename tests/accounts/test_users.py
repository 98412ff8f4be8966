"""Users in the store: what a change empties, what a deletion takes along, and the administrator that stays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.accounts.bootstrap import bootstrap
from appliance.accounts.errors import AccountError, AuthenticationError
from appliance.accounts.keys import Keyring
from appliance.accounts.passwords import verify_password
from appliance.accounts.roles import RoleChange, Roles
from appliance.accounts.users import ALL, NewUser, UserChange, Users
from appliance.audit.log import SERVICE, AuditLog
from appliance.storage.database import Database

ADMINISTRATOR, ADMINISTRATOR_ROLE = 1, 1
SECRET = "a password that no log may hold"
NOTHING = UserChange(
    email=None, name=None, role_id=None, priority=None, organization_id=None, budget=None, expires_at=None
)
NEVER_MS = 253_402_300_799_000
ANOTHER = NewUser(
    email="other@example.org",
    name=None,
    role_id=ADMINISTRATOR_ROLE,
    organization_id=None,
    budget=None,
    expires_at=None,
    priority=0,
)


@pytest.fixture(autouse=True)
def administrator(database: Database, keyring: Keyring) -> None:
    bootstrap(database, keyring, None)


@pytest.fixture
def users(database: Database) -> Users:
    return Users(database, AuditLog(b"a" * 32))


def value(database: Database, query: str, *values: Any) -> Any:
    return database.read_sync(lambda db: db.execute(query, list(values)).fetchone()[0])


async def test_the_last_administrator_can_neither_be_deleted_nor_demoted_nor_made_to_expire(
    database: Database, users: Users
) -> None:
    plain = await Roles(database, AuditLog(b"a" * 32)).create(SERVICE, "plain", RoleChange())

    for refused in (
        users.delete(SERVICE, ADMINISTRATOR),
        users.update(SERVICE, ADMINISTRATOR, msgspec.structs.replace(NOTHING, role_id=plain)),
        users.update(SERVICE, ADMINISTRATOR, msgspec.structs.replace(NOTHING, expires_at=NEVER_MS)),
    ):
        with pytest.raises(AccountError) as error:
            await refused
        assert error.value.status == 409
    user = await users.get(ADMINISTRATOR)
    assert (user.role_id, user.expires_at) == (ADMINISTRATOR_ROLE, None)


async def test_an_administrator_that_expires_does_not_count_as_the_one_that_stays(users: Users) -> None:
    expiring = await users.create(SERVICE, msgspec.structs.replace(ANOTHER, expires_at=NEVER_MS), SECRET)
    with pytest.raises(AccountError, match="must keep an administrator"):
        await users.delete(SERVICE, ADMINISTRATOR)

    await users.update(SERVICE, expiring, NOTHING)
    await users.delete(SERVICE, ADMINISTRATOR)
    assert [user.id for user in await users.list(ALL)] == [expiring]


async def test_of_two_administrators_who_delete_each_other_one_stays(users: Users) -> None:
    other = await users.create(SERVICE, ANOTHER, SECRET)
    outcomes = await asyncio.gather(
        users.delete(SERVICE, ADMINISTRATOR), users.delete(SERVICE, other), return_exceptions=True
    )

    assert [type(outcome) for outcome in outcomes].count(AccountError) == 1
    assert len(await users.list(ALL)) == 1


async def test_of_many_at_once_one_gets_the_email(users: Users) -> None:
    outcomes = await asyncio.gather(
        *(users.create(SERVICE, ANOTHER, SECRET) for _ in range(8)), return_exceptions=True
    )

    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    refused = [outcome for outcome in outcomes if not isinstance(outcome, int)]
    assert {str(error) for error in refused} == {"User already exists."}


@pytest.mark.parametrize("at_once", [1, 2, 5000])
async def test_a_deleted_users_usage_stays_and_is_nobodys(
    database: Database, users: Users, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("appliance.accounts.user_removal.RECORDS_AT_ONCE", at_once)
    user = await users.create(SERVICE, ANOTHER, SECRET)

    def use(db: Any) -> None:
        for owner in (user, user, user, ADMINISTRATOR):
            db.execute(
                "INSERT INTO usage (created_at, user_id, email, endpoint, method, status, latency_ms, "
                "prompt_tokens, completion_tokens, cost, kwh_min, kwh_max, kgco2eq_min, kgco2eq_max) "
                "VALUES (0, ?, 'e', '/v1/embeddings', 'POST', 200, 1, 1, 1, 5, 0, 0, 0, 0)",
                [owner],
            )
        for owner in (user, ADMINISTRATOR, 0):
            db.execute(
                "INSERT INTO usage_quarters VALUES (7, ?, 'm', 'e', 1, 0, 2, 3, 4, 0.5, 1, 1, 1)", [owner]
            )
        db.execute("INSERT INTO limit_hits VALUES (?, 1, 1, 1, 1)", [user])

    await database.write(use)
    await users.delete(SERVICE, user)

    assert value(database, "SELECT count(*) FROM usage WHERE user_id IS NULL AND cost = 5") == 3
    assert value(database, "SELECT count(*) FROM usage WHERE user_id = ?", ADMINISTRATOR) == 1
    assert value(database, "SELECT sum(requests) FROM usage_quarters") == 3
    assert value(database, "SELECT cost FROM usage_quarters WHERE user_id = 0") == 8
    assert value(database, "SELECT kwh_min FROM usage_quarters WHERE user_id = 0") == 1.0
    assert value(database, "SELECT count(*) FROM usage_quarters WHERE user_id = ?", user) == 0
    assert value(database, "SELECT count(*) FROM limit_hits") == 0


async def test_a_deleted_user_takes_its_keys_routers_and_providers_along(
    database: Database, users: Users
) -> None:
    user = await users.create(SERVICE, ANOTHER, SECRET)

    def own(db: Any) -> None:
        Keyring(database, b"p" * 32).insert(db, user, "laptop", "a-key-of-the-user")
        for owner in (user, None):
            router = db.execute(
                "INSERT INTO routers (type, user_id, created_at, updated_at) VALUES ('text-generation', ?, 0, 0)",
                [owner],
            ).lastrowid
            db.execute("INSERT INTO router_names VALUES (?, ?, 0)", [f"model-{owner}", router])
            for provider in (user, None):
                db.execute(
                    "INSERT INTO providers (router_id, user_id, type, url, model_name, created_at) "
                    "VALUES (?, ?, 'vllm', ?, 'm', 0)",
                    [router, provider, f"http://10.0.0.1/{provider}"],
                )

    await database.write(own)
    await users.delete(SERVICE, user)

    assert value(database, "SELECT count(*) FROM routers") == 1
    assert value(database, "SELECT count(*) FROM router_names") == 1
    assert value(database, "SELECT count(*) FROM providers") == 1
    assert value(database, "SELECT count(*) FROM keys WHERE user_id = ?", user) == 0
    details = msgspec.json.decode(value(database, "SELECT details FROM audit ORDER BY id DESC LIMIT 1"))
    assert len(details["routers"]) == 1
    assert len(details["providers"]) == 3


async def test_a_new_password_ends_sessions_and_leaves_keys(database: Database, users: Users) -> None:
    user = await users.create(SERVICE, ANOTHER, SECRET)

    def log_in(db: Any) -> None:
        keyring = Keyring(database, b"p" * 32)
        keyring.insert(db, user, "playground", "a-session-of-the-user", kind="session")
        keyring.insert(db, user, "laptop", "a-key-of-the-user")

    kinds = "SELECT group_concat(kind) FROM keys WHERE user_id = ?"
    await database.write(log_in)
    await users.update(SERVICE, user, msgspec.structs.replace(NOTHING, name="named"))
    assert value(database, kinds, user) == "session,key"
    await users.update(SERVICE, user, NOTHING, "another password")
    assert value(database, kinds, user) == "key"
    assert await verify_password(
        "another password", value(database, "SELECT password_hash FROM users WHERE id = ?", user)
    )


async def test_the_current_password_is_checked_when_it_is_given(database: Database, users: Users) -> None:
    user = await users.create(SERVICE, ANOTHER, SECRET)
    before = value(database, "SELECT password_hash FROM users WHERE id = ?", user)

    for wrong in ("wrong", "", "x" * 2000):
        with pytest.raises(AuthenticationError):
            await users.update(SERVICE, user, NOTHING, "new", wrong)
    # The first administrator has none that could be right.
    with pytest.raises(AuthenticationError):
        await users.update(SERVICE, ADMINISTRATOR, NOTHING, "new", "")
    assert value(database, "SELECT password_hash FROM users WHERE id = ?", user) == before
    await users.update(SERVICE, user, NOTHING, "new", SECRET)
    assert value(database, "SELECT password_hash FROM users WHERE id = ?", user) != before


async def test_no_password_is_in_the_audit_log_or_in_the_store(
    database: Database, users: Users, tmp_path: Path
) -> None:
    user = await users.create(SERVICE, ANOTHER, SECRET)
    await users.update(SERVICE, user, NOTHING, SECRET + " two", SECRET)
    await users.reset_password(SERVICE, ANOTHER.email, SECRET + " three")

    lines = database.read_sync(lambda db: [row[0] for row in db.execute("SELECT details FROM audit")])
    assert len(lines) == 3
    assert all("argon2" not in line for line in lines)
    assert "password_changed" in lines[1]
    assert "password_changed" in lines[2]
    database.close()
    for file in tmp_path.iterdir():
        assert SECRET.encode() not in file.read_bytes()
