"""Keys: random, shown once, stored hashed, revoked at once; one administrator at first boot."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import sqlite_utils

from appliance.accounts import housekeeping, issued_keys
from appliance.accounts import keys as keys_module
from appliance.accounts import login as login_module
from appliance.accounts.bootstrap import bootstrap
from appliance.accounts.errors import AccountError, AuthenticationError
from appliance.accounts.issued_keys import LATEST_MS, IssuedKeys
from appliance.accounts.keys import Keyring, new_key
from appliance.accounts.secret import derive, load_secret
from appliance.audit.log import SERVICE, AuditLog
from appliance.storage.database import Database
from appliance.storage.migrations import administrator_role


@pytest.fixture
def keys(database: Database, keyring: Keyring) -> IssuedKeys:
    return IssuedKeys(database, keyring, AuditLog(b"a" * 32), max_days=0)


def test_the_first_boot_makes_one_administrator_and_says_its_key_once(
    database: Database, keyring: Keyring
) -> None:
    key = bootstrap(database, keyring, None)

    assert key is not None
    assert keyring.authenticate(key).permissions >= {"admin"}
    assert bootstrap(database, keyring, None) is None


def test_the_bootstrap_file_gives_the_key_and_is_read_only_once(
    database: Database, keyring: Keyring, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("  my-own-bootstrap-key \n")

    assert bootstrap(database, keyring, file) is None
    assert keyring.authenticate("my-own-bootstrap-key").permissions >= {"admin"}
    file.write_text("another-bootstrap-key")
    assert bootstrap(database, keyring, file) is None
    with pytest.raises(AuthenticationError):
        keyring.authenticate("another-bootstrap-key")


@pytest.mark.parametrize(
    "content", [b"short", b"x" * 513, "schl\u00fcssel-lang-genug".encode(), b"a key with blanks in"]
)
def test_an_unusable_bootstrap_file_writes_nothing(
    database: Database, keyring: Keyring, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)

    with pytest.raises(AccountError, match="16 to 512"):
        bootstrap(database, keyring, file)
    assert bootstrap(database, keyring, None) is not None


async def test_a_key_works_until_it_is_deleted(
    database: Database, keyring: Keyring, keys: IssuedKeys
) -> None:
    bootstrap(database, keyring, None)
    created = await keys.create(SERVICE, 1, "laptop")

    assert keyring.authenticate(created.key).key_id == created.id
    assert keyring.authenticate(f"cmp_{created.key}").key_id == created.id
    await keys.delete(SERVICE, created.id)
    with pytest.raises(AuthenticationError):
        keyring.authenticate(created.key)
    with pytest.raises(AccountError):
        await keys.delete(SERVICE, created.id)


async def test_an_expired_key_is_refused(
    database: Database, keyring: Keyring, keys: IssuedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap(database, keyring, None)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    created = await keys.create(SERVICE, 1, "short", now // 1_000_000 + 1000)
    assert keyring.authenticate(created.key).key_id == created.id
    monkeypatch.setattr(time, "time_ns", lambda: now + 2_000_000_000)

    with pytest.raises(AuthenticationError):
        keyring.authenticate(created.key)


def test_no_file_of_the_store_holds_a_key(
    database: Database, keyring: Keyring, keys: IssuedKeys, tmp_path: Path
) -> None:
    first = bootstrap(database, keyring, None)
    created = asyncio.run(keys.create(SERVICE, 1, "laptop"))
    again = asyncio.run(keys.regenerate(SERVICE, created.id))
    database.close()

    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert first is not None
        assert first.encode() not in content
        assert created.key.encode() not in content
        assert again.key.encode() not in content


@pytest.mark.parametrize("presented", ["", "x", "cmp_", "sk-" + "a" * 43, "\udcff\udcfe", "k" * 100_000])
def test_anything_else_is_refused(database: Database, keyring: Keyring, presented: str) -> None:
    bootstrap(database, keyring, None)

    with pytest.raises(AuthenticationError):
        keyring.authenticate(presented)


def test_new_keys_have_the_published_form() -> None:
    keys = {new_key() for _ in range(100)}

    assert len(keys) == 100
    assert all(key.startswith("sk-") and len(key) == 46 and key[3:].isalnum() for key in keys)


def test_the_secret_is_made_once_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    secret = load_secret(path)

    assert load_secret(path) == secret
    assert path.stat().st_mode & 0o777 == 0o600
    assert derive(secret, "api keys") != derive(secret, "audit")
    path.write_bytes(secret[:31])
    with pytest.raises(AccountError, match="backup"):
        load_secret(path)


async def test_a_regenerated_key_keeps_its_rights_and_the_text_before_is_dead(
    database: Database, keyring: Keyring, keys: IssuedKeys
) -> None:
    bootstrap(database, keyring, None)
    made = await keys.create(SERVICE, 1, "laptop", LATEST_MS)
    before = keyring.authenticate(made.key)
    new = await keys.regenerate(SERVICE, made.id)

    assert keyring.authenticate(new.key) == before
    with pytest.raises(AuthenticationError):
        keyring.authenticate(made.key)
    assert (await keys.get(made.id)).hint == f"{new.key[:8]}...{new.key[-8:]}"


async def test_a_key_of_another_user_is_not_found(
    database: Database, keyring: Keyring, keys: IssuedKeys
) -> None:
    bootstrap(database, keyring, None)
    made = await keys.create(SERVICE, 1, "laptop")

    for attempt in (
        keys.get(made.id, 2),
        keys.delete(SERVICE, made.id, 2),
        keys.regenerate(SERVICE, made.id, 2),
    ):
        with pytest.raises(AccountError, match=r"Token not found\."):
            await attempt
    assert keyring.authenticate(made.key).key_id == made.id


async def test_a_user_cannot_fill_the_store_with_keys(
    database: Database, keyring: Keyring, keys: IssuedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap(database, keyring, None)
    monkeypatch.setattr(issued_keys, "KEYS_OF_A_USER", 3)
    await keys.create(SERVICE, 1, "second")
    third = await keys.create(SERVICE, 1, "third")

    with pytest.raises(AccountError, match="more than 3 keys"):
        await keys.create(SERVICE, 1, "fourth")
    await keys.delete(SERVICE, third.id)
    assert (await keys.create(SERVICE, 1, "fourth")).id > third.id


async def test_the_longest_life_comes_before_the_user(database: Database, keyring: Keyring) -> None:
    keys = IssuedKeys(database, keyring, AuditLog(b"a" * 32), max_days=10**9)

    with pytest.raises(AccountError) as caught:
        await keys.create(SERVICE, 999, "x", LATEST_MS + 1)
    assert caught.value.status == 400
    with pytest.raises(AccountError) as caught:
        await keys.create(SERVICE, 999, "x")
    assert caught.value.status == 404


async def test_keys_are_deleted_a_week_after_they_expired(
    database: Database, keyring: Keyring, keys: IssuedKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap(database, keyring, None)
    monkeypatch.setattr(housekeeping, "DELETED_AT_ONCE", 2)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    for number in range(5):
        await keys.create(SERVICE, 1, f"key {number}", now // 1_000_000 + 1000)
    living = await keys.create(SERVICE, 1, "living")
    audit = AuditLog(b"a" * 32)

    def left() -> int:
        return int(database.read_sync(lambda db: db.execute("SELECT count(*) FROM keys").fetchone()[0]))

    monkeypatch.setattr(time, "time_ns", lambda: now + 6 * 86_400 * 10**9)
    assert await housekeeping.tidy(database, audit) == 0
    assert left() == 7
    monkeypatch.setattr(time, "time_ns", lambda: now + 8 * 86_400 * 10**9)
    assert await housekeeping.tidy(database, audit) == 5
    assert left() == 2
    assert keyring.authenticate(living.key).key_id == living.id


def test_keys_are_found_by_their_indexes_among_a_hundred_thousand(
    database: Database, keyring: Keyring
) -> None:
    def fill(db: sqlite_utils.Database) -> None:
        administrator_role(db, now=1)
        db.conn.executemany(
            "INSERT INTO users (id, email, role_id, created_at, updated_at) VALUES (?, ?, 1, 1, 1)",
            [(user, f"user-{user}@example.org") for user in range(1, 10_001)],
        )
        db.conn.executemany(
            "INSERT INTO keys (user_id, name, digest, hint, created_at) VALUES (?, 'x', ?, '', 1)",
            [(number % 10_000 + 1, keyring.digest(f"sk-{number}")) for number in range(100_000)],
        )

    database.write_sync(fill)
    for number in range(0, 100_000, 5000):
        assert keyring.authenticate(f"sk-{number}").user_id == number % 10_000 + 1

    def plan(query: str, parameters: list[object]) -> str:
        rows = database.read_sync(lambda db: db.execute(f"EXPLAIN QUERY PLAN {query}", parameters).fetchall())
        return "\n".join(row[3] for row in rows)

    of_key = plan(keys_module._ACCOUNT, [b"x" * 32, 1])
    assert "SEARCH k USING INDEX sqlite_autoindex_keys_1 (digest=?)" in of_key
    assert "SEARCH u USING INTEGER PRIMARY KEY (rowid=?)" in of_key
    assert "SEARCH p USING PRIMARY KEY (role_id=?)" in of_key
    assert "SCAN k" not in of_key
    assert "SCAN u" not in of_key
    expired = plan(housekeeping._EXPIRED, [1, 10])
    assert "USING COVERING INDEX keys_by_expiry" in expired
    owned = plan(
        f"{issued_keys._SELECT} WHERE k.user_id = ? ORDER BY k.id LIMIT 10",
        [1],
    )
    assert "SEARCH k USING INDEX keys_by_user" in owned
    login = plan(login_module._LOGIN, ["x"])
    assert "SEARCH users USING INDEX sqlite_autoindex_users_1 (email=?)" in login
