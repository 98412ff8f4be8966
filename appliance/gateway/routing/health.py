"""A look, now and then, at the upstream servers that nothing is known of: those that failed, and idle ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

import aiohttp

from appliance.accounts.sealing import Sealer
from appliance.errors import ApplianceError
from appliance.gateway.routing.records import Provider
from appliance.gateway.routing.states import ProviderStates
from appliance.gateway.upstream.probe import probe

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0
# A provider that answered requests since then needs no look.
IDLE_SECONDS = 30.0
PROBE_SECONDS = 5.0
MOST_AT_ONCE = 8


class HealthWatch:
    """Asks providers for their list of models, in the background; requests through them tell the rest."""

    def __init__(
        self,
        states: ProviderStates,
        providers: Callable[[], Iterable[Provider]],
        client: aiohttp.ClientSession,
        sealer: Sealer,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        """Take what gives the providers of the moment, and the seconds between two looks."""
        self._states = states
        self._providers = providers
        self._client = client
        self._sealer = sealer
        self._interval = interval
        self._task: asyncio.Task[None] | None = None
        self._free = asyncio.Semaphore(MOST_AT_ONCE)

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="health of providers")

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def look(self) -> None:
        """Probe every provider that failed or has been silent."""
        wanted = [provider for provider in self._providers() if self._unknown(provider)]
        await asyncio.gather(*map(self._probe, wanted))

    def _unknown(self, provider: Provider) -> bool:
        if provider.is_local:
            return False
        return not self._states.healthy(provider) or self._states.silent_seconds(provider) >= IDLE_SECONDS

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.look()
            except Exception:
                # Nobody would notice that it stopped: it goes on, and the log says what happened.
                log.exception("looking at the providers failed")

    async def _probe(self, provider: Provider) -> None:
        healthy = self._states.healthy(provider)
        async with self._free:
            try:
                key = None
                if provider.sealed_key is not None:
                    key = self._sealer.open(provider.sealed_key, provider.id)
                await probe(
                    self._client,
                    provider.type,
                    provider.url or "",
                    key,
                    provider.model_name,
                    want_vector_size=False,
                    timeout=PROBE_SECONDS,
                )
            except ApplianceError as error:
                if healthy:
                    log.warning("provider %d (%s) cannot be reached: %s", provider.id, provider.url, error)
                self._states.probed(provider, reached=False)
            else:
                self._states.probed(provider, reached=True)
