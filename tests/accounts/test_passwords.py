"""Passwords: argon2id with OWASP's parameters, the same work for everybody, a bounded line."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from appliance.accounts import passwords
from appliance.accounts.passwords import (
    AT_ONCE,
    LONGEST_QUEUE,
    hash_password,
    is_outdated,
    verify_password,
)
from appliance.errors import OverloadedError


async def test_only_the_password_itself_matches_its_hash() -> None:
    made = await hash_password("correct horse")

    assert made.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await verify_password("correct horse", made)
    assert not await verify_password("correct horse ", made)
    assert not await verify_password("", made)


async def test_two_hashes_of_a_password_differ() -> None:
    assert await hash_password("same") != await hash_password("same")


@pytest.mark.parametrize("password", ["", "\0", "a\0b", "\ud800", "é" * 1000, "x" * 100_000])
async def test_any_text_can_be_a_password(password: str) -> None:
    made = await hash_password(password)

    assert await verify_password(password, made)
    assert not await verify_password(password + "\0", made)


async def test_nobody_without_a_hash_gets_in_and_it_is_as_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    made = await hash_password("secret")
    checked: list[str] = []
    verify = Argon2id.verify_phc_encoded

    def seen(password: bytes, password_hash: str) -> None:
        checked.append(password_hash)
        verify(password, password_hash)

    monkeypatch.setattr(passwords, "Argon2id", SimpleNamespace(verify_phc_encoded=seen))

    assert not await verify_password("wrong", made)
    assert not await verify_password("wrong", None)
    known, unknown = (each.split("$") for each in checked)
    assert known[:4] == unknown[:4]
    assert [len(part) for part in known] == [len(part) for part in unknown]


@pytest.mark.parametrize("damaged", ["junk", "$2b$12$abc", "$argon2id$v=19$m=19456,t=2,p=1$OcR2$", "\0"])
async def test_a_damaged_hash_matches_nothing(damaged: str) -> None:
    assert not await verify_password("secret", damaged)


async def test_a_hash_of_other_parameters_is_outdated() -> None:
    assert not is_outdated(await hash_password("secret"))
    assert is_outdated("$argon2id$v=19$m=8192,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAA")


async def test_a_flood_is_refused_beyond_the_line_and_the_loop_goes_on() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    flood = [verify_password("x", None) for _ in range(AT_ONCE + LONGEST_QUEUE + 10)]
    results = await asyncio.gather(*flood, return_exceptions=True)
    ticking.cancel()

    refused = [each for each in results if isinstance(each, OverloadedError)]
    assert len(refused) == 10
    assert all(each.retry_after == 2 for each in refused)
    assert results.count(False) == AT_ONCE + LONGEST_QUEUE
    assert ticks > 10
    assert not await verify_password("x", None)
