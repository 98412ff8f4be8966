"""The gateway over a store of its own: what a call costs is kept whatever else fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.accounts.keys import Account, Keyring
from appliance.api.model_call import CHAT
from appliance.audit.log import AuditLog
from appliance.config import Settings
from appliance.engines.cores import Cores
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
