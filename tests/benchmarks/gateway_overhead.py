"""What the gateway itself takes: look the key up, count, reserve, route, account. No HTTP, no model."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from appliance.accounts.keys import Keyring
from appliance.accounts.secret import derive
from appliance.api.model_call import CHAT
from appliance.app import SWITCH_INTERVAL_SECONDS
from appliance.audit.log import AuditLog
from appliance.config import Settings
from appliance.engines.cores import Cores
from appliance.gateway.catalog import Catalog
from appliance.gateway.gateway import Gateway
from appliance.gateway.routing.records import Provider
from appliance.packs.store import PackStore
from tests.benchmarks.gateway_store import filled

SECRET = b"s" * 32
# A request is in the engine for so long: 256 clients make 2,560 requests a second.
ENGINE_SECONDS = 0.1
SECONDS = 4.0
CLIENTS = (1, 32, 256)
PROMPT, COMPLETION = 20, 16


class Overhead(msgspec.Struct, frozen=True):
    """Milliseconds that the gateway added to a request, and how many requests were seen."""

    median: float
    worst: float
    requests: int


def overheads(folder: Path, users: int) -> dict[int, Overhead]:
    """Return the overhead by number of clients, over a store of so many users (and ten times as many keys)."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    folder.mkdir()
    return asyncio.run(_measured(folder, users))


async def _measured(folder: Path, users: int) -> dict[int, Overhead]:
    pepper = derive(SECRET, "api keys")
    database, keys = await asyncio.to_thread(filled, folder / "appliance.db", pepper, users)
    with _closing(folder) as settings:
        catalog = Catalog(PackStore(settings.packs_dir), Cores(1), settings)
        gateway = Gateway(database, AuditLog(derive(SECRET, "audit log")), catalog, settings)
        await gateway.start()
        try:
            keyring = Keyring(database, pepper)
            return {clients: await _load(gateway, keyring, keys, clients) for clients in CLIENTS}
        finally:
            await gateway.close()
            await asyncio.to_thread(database.close)


@contextmanager
def _closing(folder: Path) -> Iterator[Settings]:
    packs = folder / "packs"
    packs.mkdir()
    yield Settings(data_dir=folder)


async def _load(gateway: Gateway, keyring: Keyring, keys: list[str], clients: int) -> Overhead:
    added: list[float] = []
    turn = itertools.cycle(keys)
    end = time.perf_counter() + SECONDS

    async def client(number: int) -> None:
        # Spread over the engine's time, as clients are that do not know of each other.
        await asyncio.sleep(ENGINE_SECONDS * number / clients)
        while time.perf_counter() < end:
            added.append(await _request(gateway, keyring, next(turn)))

    await asyncio.gather(*(client(number) for number in range(clients)))
    added.sort()
    return Overhead(
        median=1000 * statistics.median(added),
        worst=1000 * added[int(0.99 * len(added))],
        requests=len(added),
    )


async def _request(gateway: Gateway, keyring: Keyring, key: str) -> float:
    """Make one request of a trivial engine and return the seconds that it took beyond the engine's."""
    engine = 0.0

    async def attempt(_provider: Provider) -> None:
        nonlocal engine
        begun = time.perf_counter()
        await asyncio.sleep(ENGINE_SECONDS)
        engine = time.perf_counter() - begun

    started = time.perf_counter()
    account = keyring.authenticate(key)
    call = gateway.call(account, "trivial", CHAT, endpoint="/v1/chat/completions")
    try:
        call.reserve(PROMPT, COMPLETION)
        await call.dispatch(attempt)
        call.completion_tokens = COMPLETION
        call.usage()
        call.headers()
    finally:
        call.close(200)
    return time.perf_counter() - started - engine
