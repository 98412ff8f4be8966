"""Logins: one key an hour, nothing said about who exists, and guessing that gets slower and slower."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest
import sqlite_utils
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from appliance.accounts import login as login_module
from appliance.accounts import throttle
from appliance.accounts.errors import AuthenticationError
from appliance.accounts.issued_keys import IssuedKeys
from appliance.accounts.keys import Keyring
from appliance.accounts.login import Logins, WrongPasswordError
from appliance.accounts.own_account import OwnChange, change_own_account
from appliance.accounts.passwords import hash_password, is_outdated
from appliance.accounts.throttle import LONGEST_LINE, TooManyAttemptsError
from appliance.audit.log import SERVICE, AuditLog
from appliance.storage.database import Database
from appliance.storage.migrations import administrator_role

EMAIL = "ada@example.org"
PASSWORD = "correct horse"
HERE, THERE = "192.0.2.1", "192.0.2.2"
AUDIT = AuditLog(b"a" * 32)


class Clock:
    """A wall clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: self.now)

    def pass_by(self, seconds: float) -> None:
        """Let time pass, or with a negative number set the clock back."""
        self.now += int(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def quick_hashes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare texts instead of hashes, where a test is about many attempts; no wait ends while they are made."""

    async def verify(password: str, password_hash: str | None) -> bool:
        await asyncio.sleep(0)
        return password_hash is not None and password == PASSWORD

    monkeypatch.setattr(login_module, "verify_password", verify)


@pytest.fixture
def database(database: Database) -> Database:
    password_hash = asyncio.run(hash_password(PASSWORD))

    def fill(db: sqlite_utils.Database) -> None:
        role = administrator_role(db, now=1)
        for user, stored in ((1, password_hash), (2, None)):
            db.execute(
                "INSERT INTO users (id, email, password_hash, role_id, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, 1, 1)",
                [user, EMAIL if user == 1 else "nobody@example.org", stored, role],
            )

    database.write_sync(fill)
    return database


@pytest.fixture
def logins(database: Database, keyring: Keyring) -> Logins:
    return Logins(database, keyring, AUDIT, session_seconds=3600)


def rows(database: Database, query: str) -> list[Any]:
    found: list[Any] = database.read_sync(lambda db: db.execute(query).fetchall())
    return found


async def status(attempt: Awaitable[Any]) -> int:
    """Return the status that an attempt ends with."""
    try:
        await attempt
    except (WrongPasswordError, TooManyAttemptsError) as error:
        return error.status
    return 200


async def failures(logins: Logins, count: int, email: str = EMAIL, source: str = HERE) -> list[int]:
    return [await status(logins.login(email, "wrong", source)) for _ in range(count)]


async def test_a_login_gives_a_key_for_an_hour_in_place_of_the_one_before(
    database: Database, keyring: Keyring, logins: Logins, clock: Clock
) -> None:
    keys = IssuedKeys(database, keyring, AUDIT, 0)
    other = await keys.create(SERVICE, 1, "playground")
    first = await logins.login(EMAIL, PASSWORD, HERE)
    second = await logins.login(EMAIL, PASSWORD, THERE)

    with pytest.raises(AuthenticationError):
        keyring.authenticate(first.key)
    account = keyring.authenticate(second.key)
    assert (account.user_id, account.kind, account.key_name) == (1, "session", "playground")
    assert account.key_id == second.id
    clock.pass_by(3599)
    assert keyring.authenticate(second.key) == account
    clock.pass_by(2)
    with pytest.raises(AuthenticationError):
        keyring.authenticate(second.key)
    assert keyring.authenticate(other.key).kind == "key"


@pytest.mark.parametrize(
    ("email", "password"),
    [
        (EMAIL, "wrong"),
        (EMAIL, ""),
        (EMAIL, PASSWORD + " "),
        (EMAIL.upper(), PASSWORD),
        ("nobody@example.org", ""),
        ("nobody@example.org", PASSWORD),
        ("unknown@example.org", PASSWORD),
        ("master", PASSWORD),
        ("\0", "\0"),
        (EMAIL, "x" * 100_000),
    ],
)
async def test_every_failure_is_the_same(logins: Logins, email: str, password: str) -> None:
    with pytest.raises(WrongPasswordError) as caught:
        await logins.login(email, password, HERE)

    assert caught.value.status == 401
    assert caught.value.message == "Invalid current password."


async def test_failures_do_the_same_work_whoever_is_meant(
    logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str | None] = []

    async def verify(_password: str, password_hash: str | None) -> bool:
        checked.append(password_hash)
        return False

    monkeypatch.setattr(login_module, "verify_password", verify)
    for email in (EMAIL, "nobody@example.org", "unknown@example.org", "master"):
        await status(logins.login(email, "wrong", HERE, master=True))

    assert len(checked) == 4
    assert checked[1:] == [None, None, None]


async def test_the_master_login_is_for_the_bootstrap_key_alone(
    database: Database, keyring: Keyring, logins: Logins
) -> None:
    ordinary = await IssuedKeys(database, keyring, AUDIT, 0).create(SERVICE, 1, "x")
    database.write_sync(lambda db: keyring.insert(db, 1, "bootstrap", "the-first-key", kind="bootstrap"))

    made = await logins.login("master", "the-first-key", HERE, master=True)
    assert (made.id, made.key) == (0, "the-first-key")
    assert await status(logins.login("master", "the-first-key", HERE)) == 401
    assert await status(logins.login("master", ordinary.key, HERE, master=True)) == 401


@pytest.mark.usefixtures("quick_hashes")
async def test_after_five_failures_the_wait_doubles_up_to_a_quarter_of_an_hour(
    logins: Logins, clock: Clock
) -> None:
    assert await failures(logins, 7) == [401] * 5 + [429] * 2
    waits = []
    for _ in range(12):
        with pytest.raises(TooManyAttemptsError) as caught:
            await logins.login(EMAIL, PASSWORD, HERE)
        waits.append(caught.value.retry_after or 0)
        assert f"Try again in {waits[-1]} seconds." in caught.value.message
        clock.pass_by(waits[-1] - 0.5)
        assert await status(logins.login(EMAIL, PASSWORD, HERE)) == 429
        clock.pass_by(0.6)
        assert await failures(logins, 1) == [401]

    assert waits[:8] == [2, 4, 8, 16, 32, 64, 128, 256]
    assert max(waits) <= 900
    assert waits[-1] >= 256


@pytest.mark.usefixtures("quick_hashes")
async def test_after_the_wait_the_right_password_gets_in_and_clears_the_count(
    logins: Logins, clock: Clock
) -> None:
    await failures(logins, 6)
    clock.pass_by(2)

    assert await status(logins.login(EMAIL, PASSWORD, HERE)) == 200
    assert await failures(logins, 6) == [401] * 5 + [429]


@pytest.mark.usefixtures("quick_hashes")
async def test_a_stranger_does_not_keep_the_owner_out(logins: Logins) -> None:
    await failures(logins, 30)

    assert await status(logins.login(EMAIL, PASSWORD, HERE)) == 429
    assert await status(logins.login(EMAIL, PASSWORD, THERE)) == 200


@pytest.mark.usefixtures("quick_hashes")
async def test_an_address_that_tries_many_users_has_to_wait_too(logins: Logins, clock: Clock) -> None:
    results = [await status(logins.login(f"user-{n}", "x", HERE)) for n in range(22)]

    assert results == [401] * 20 + [429] * 2
    assert await status(logins.login(EMAIL, PASSWORD, THERE)) == 200
    clock.pass_by(2)
    # A login of one's own does not clear the count of the address.
    assert await status(logins.login(EMAIL, PASSWORD, HERE)) == 200
    assert [await status(logins.login(f"user-{n}", "x", HERE)) for n in range(30, 32)] == [401, 429]


@pytest.mark.usefixtures("quick_hashes")
async def test_an_ipv6_network_counts_as_one_address(logins: Logins) -> None:
    results = [await status(logins.login(f"u{n}", "x", f"2001:db8::{n:x}")) for n in range(21)]

    assert results == [401] * 20 + [429]
    assert await status(logins.login(EMAIL, PASSWORD, "2001:db8:0:1::1")) == 200


@pytest.mark.usefixtures("quick_hashes")
async def test_failures_are_forgotten_with_time(logins: Logins, clock: Clock, database: Database) -> None:
    await failures(logins, 5)
    clock.pass_by(5 * 900)
    assert await failures(logins, 6) == [401] * 5 + [429]
    clock.pass_by(13 * 3600)
    database.write_sync(throttle.forget_failures)

    assert rows(database, "SELECT count(*) FROM login_failures") == [(0,)]


@pytest.mark.usefixtures("quick_hashes")
async def test_a_clock_that_was_set_back_keeps_nobody_out(logins: Logins, clock: Clock) -> None:
    await failures(logins, 10)
    clock.pass_by(-86_400)

    assert await status(logins.login(EMAIL, PASSWORD, HERE)) == 200


@pytest.mark.usefixtures("quick_hashes")
async def test_counts_outlive_a_restart_and_name_nobody(
    database: Database, keyring: Keyring, logins: Logins
) -> None:
    await failures(logins, 6)
    again = Logins(database, keyring, AUDIT, session_seconds=3600)

    assert await status(again.login(EMAIL, PASSWORD, HERE)) == 429
    subjects = [row[0] for row in rows(database, "SELECT subject FROM login_failures")]
    assert [len(subject) for subject in subjects] == [32, 32]


@pytest.mark.usefixtures("quick_hashes")
async def test_guesses_at_the_same_time_are_no_way_around(logins: Logins) -> None:
    guesses = [status(logins.login(EMAIL, "wrong", HERE)) for _ in range(LONGEST_LINE + 20)]
    results = await asyncio.gather(*guesses)

    assert results.count(401) == 5
    assert results.count(429) == LONGEST_LINE + 15


@pytest.mark.usefixtures("quick_hashes")
async def test_logins_at_the_same_time_all_succeed_and_one_key_is_left(
    database: Database, logins: Logins
) -> None:
    results = await asyncio.gather(*(status(logins.login(EMAIL, PASSWORD, HERE)) for _ in range(20)))

    assert results == [200] * 20
    assert rows(database, "SELECT count(*) FROM keys WHERE kind = 'session'") == [(1,)]


@pytest.mark.usefixtures("quick_hashes")
async def test_the_table_stays_small(
    database: Database, logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "MOST_SUBJECTS", 50)
    await failures(logins, 6)
    for number in range(100):
        await failures(logins, 1, f"user-{number}", f"192.0.2.{number + 10}")

    assert rows(database, "SELECT count(*) FROM login_failures")[0][0] <= 50
    # Who failed most is not forgotten for it.
    assert await status(logins.login(EMAIL, PASSWORD, HERE)) == 429


@pytest.mark.usefixtures("quick_hashes")
async def test_logins_are_in_the_audit_log_and_a_flood_of_failures_is_a_few_lines(
    database: Database, logins: Logins, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_module, "LINES_AN_HOUR", 5)
    await logins.login(EMAIL, PASSWORD, HERE)
    for number in range(12):
        await failures(logins, 1, f"secret-typed-as-email-{number}", f"192.0.2.{number + 10}")
    clock.pass_by(3600)
    await failures(logins, 1)
    lines = rows(database, "SELECT actor_id, actor, source, action, target, details FROM audit ORDER BY id")

    assert lines[0][:5] == (1, EMAIL, HERE, "user.login", "1")
    assert [line[3] for line in lines[1:6]] == ["login.refuse"] * 5
    assert lines[6] == (None, "service", "local", "login.refuse", "others", '{"further_failures":7}')
    assert lines[7] == (None, "unknown", HERE, "login.refuse", "1", "{}")
    assert len(lines) == 8
    assert "secret" not in str(lines)


async def test_a_hash_of_before_is_renewed_by_a_login(database: Database, logins: Logins) -> None:
    old = Argon2id(salt=b"s" * 16, length=32, iterations=1, lanes=1, memory_cost=64)
    outdated = old.derive_phc_encoded(PASSWORD.encode())
    database.write_sync(lambda db: db.execute("UPDATE users SET password_hash = ? WHERE id = 1", [outdated]))

    await logins.login(EMAIL, PASSWORD, HERE)
    [(stored,)] = rows(database, "SELECT password_hash FROM users WHERE id = 1")
    assert is_outdated(outdated)
    assert not is_outdated(stored)
    await logins.login(EMAIL, PASSWORD, HERE)


async def test_a_password_changed_meanwhile_is_not_overtaken(
    database: Database, logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def verify(_password: str, _hash: str | None) -> bool:
        await database.write(lambda db: db.execute("UPDATE users SET password_hash = 'new' WHERE id = 1"))
        return True

    monkeypatch.setattr(login_module, "verify_password", verify)

    with pytest.raises(WrongPasswordError):
        await logins.login(EMAIL, PASSWORD, HERE)
    assert rows(database, "SELECT count(*) FROM keys") == [(0,)]


@pytest.mark.usefixtures("quick_hashes")
async def test_the_present_password_is_asked_for_and_guessing_it_gets_slow(
    database: Database, logins: Logins
) -> None:
    def change(current: str | None) -> Awaitable[None]:
        wanted = OwnChange(email="new@example.org", current_password=current)
        return change_own_account(database, AUDIT, logins, SERVICE, 1, wanted)

    assert await status(change(None)) == 401
    assert [await status(change("wrong")) for _ in range(6)] == [401] * 5 + [429]
    assert rows(database, "SELECT email FROM users WHERE id = 1") == [(EMAIL,)]
