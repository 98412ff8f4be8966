"""Keys: random, shown once, stored hashed, revoked at once; one administrator at first boot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.accounts.bootstrap import bootstrap
from appliance.accounts.errors import AccountError, AuthenticationError
from appliance.accounts.issued_keys import IssuedKeys
from appliance.accounts.keys import Keyring, new_key
from appliance.accounts.secret import derive, load_secret
from appliance.audit.log import SERVICE, AuditLog
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(tmp_path / "appliance.db", MIGRATIONS)
    yield database
    database.close()


@pytest.fixture
def keyring(database: Database) -> Keyring:
    return Keyring(database, b"p" * 32)


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
