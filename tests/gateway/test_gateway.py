"""The gateway over a store of its own: what a call costs is kept whatever else fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from appliance.accounts.keys import Account, Keyring
from appliance.api.model_call import CHAT
from appliance.audit.log import AuditLog
from appliance.config import Settings
from appliance.engines.cores import Cores
from appliance.gateway.call import ModelCall
from appliance.gateway.catalog import Catalog
from appliance.gateway.errors import InsufficientBudgetError
from appliance.gateway.gateway import Gateway
from appliance.gateway.routing.records import Provider
from appliance.gateway.usage.record import UsageRecord
from appliance.packs.store import PackStore
from tests.benchmarks.gateway_store import filled

PEPPER = b"p" * 32


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Gateway, Account]]:
    """Open a gateway with a priced router whose provider nobody calls, and one user's account."""
    (folder / "packs").mkdir()
    database, keys = filled(folder / "appliance.db", PEPPER, users=1)
    catalog = Catalog(PackStore(folder / "packs"), Cores(1), Settings(data_dir=folder))
    gateway = Gateway(database, AuditLog(b"k" * 32), catalog, Settings(data_dir=folder))
    await gateway.start()
    try:
        yield gateway, Keyring(database, PEPPER).authenticate(keys[0])
    finally:
        await gateway.close()
        await asyncio.to_thread(database.close)


async def answered(_provider: Provider) -> None:
    """Answer at once."""


def chat(gateway: Gateway, account: Account) -> ModelCall:
    """Begin a chat: a millionth for a token of the prompt, two for one of the answer."""
    return gateway.call(account, "trivial", CHAT, endpoint="/v1/chat/completions")


async def spend(gateway: Gateway, account: Account, cost: int) -> None:
    """Spend so many millionths on a prompt."""
    call = chat(gateway, account)
    call.reserve(cost)
    await call.dispatch(answered)
    call.close(200)


async def test_an_observer_that_fails_loses_no_record_and_no_money(tmp_path: Path) -> None:
    def broken(_record: UsageRecord) -> None:
        raise RuntimeError("the metrics are broken")

    async with opened(tmp_path) as (gateway, account):
        gateway.observers.append(broken)
        call = gateway.call(account, "trivial", CHAT, endpoint="/v1/chat/completions")
        call.reserve(1_000_000, 10)
        await call.dispatch(answered)
        call.completion_tokens = 10
        with pytest.raises(RuntimeError, match="the metrics"):
            call.close(200)
        # What is held is what it cost, no longer what was reserved.
        assert gateway.ledger.held(account.user_id) == 1_000_000 + 20
        await gateway.usage.flush()
        assert gateway.ledger.held(account.user_id) == 0


async def test_who_was_deleted_meanwhile_spends_nothing_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as (gateway, account):
        call = gateway.call(account, "trivial", CHAT, endpoint="/v1/chat/completions")
        await gateway._database.write(
            lambda db: db.execute("DELETE FROM users WHERE id = ?", [account.user_id])
        )
        with pytest.raises(InsufficientBudgetError):
            call.reserve(100, 10)
        call.close(400)
        assert gateway.ledger.held(account.user_id) == 0


async def test_what_the_store_has_taken_counts_once_before_the_loop_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as (gateway, account):
        database = gateway._database
        await database.write(lambda db: db.execute("UPDATE users SET budget = 300 WHERE id = 1") and None)
        real, committed, heard = database.write, asyncio.Event(), asyncio.Event()

        async def unheard(function: Callable[[sqlite_utils.Database], Any]) -> Any:
            result = await real(function)
            committed.set()
            await heard.wait()
            return result

        monkeypatch.setattr(database, "write", unheard)
        await spend(gateway, account, 200)
        flushed = asyncio.create_task(gateway.usage.flush())
        await committed.wait()
        try:
            second, third = chat(gateway, account), chat(gateway, account)
            # A hundred is left: all of it may be spent, and no more.
            assert second.reserve(60, 20) == 20
            with pytest.raises(InsufficientBudgetError):
                third.reserve(1)
        finally:
            heard.set()
        await flushed
        with pytest.raises(InsufficientBudgetError):
            third.reserve(1)
        second.close(400)
        third.close(429)
        assert chat(gateway, account).reserve(60, 100) == 20
