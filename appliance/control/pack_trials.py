"""A pack that replaced another has to load: until it has, the former version is kept, and returns when it does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from appliance.gateway.catalog import Catalog
from appliance.packs.errors import PackError, PackNotFoundError
from appliance.packs.store import PackStore

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.5


class PackTrials:
    """Looks after the kept versions while the service runs. Used on the event loop only.

    ``refresh`` has the catalog take in what is installed. What was interrupted goes on at the next start: the kept
    version is there until one of the two has been decided for.
    """

    def __init__(self, packs: PackStore, catalog: Catalog, refresh: Callable[[], Awaitable[None]]) -> None:
        self._packs = packs
        self._catalog = catalog
        self._refresh = refresh
        # Why a version of a pack was left again: by name and version.
        self.failures: dict[tuple[str, str], str] = {}

    async def watch(self) -> None:
        """Settle every trial as soon as its model has loaded or failed."""
        while True:
            try:
                for name in await asyncio.to_thread(self._packs.previous):
                    await self._settle(name)
            except (PackError, OSError) as error:
                log.warning("packs of before cannot be looked after: %s", error)
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def outcome(self, name: str, version: str) -> str | None:
        """Wait until it is decided which version of a pack stays; return why the new one was left, or None."""
        while name in await asyncio.to_thread(self._packs.previous):  # noqa: ASYNC110 - a folder tells no one
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        return self.failures.get((name, version))

    async def _settle(self, name: str) -> None:
        models = {model.manifest.name: model for model in self._catalog.models()}
        model = models.get(name)
        try:
            installed = await asyncio.to_thread(self._packs.get, name)
        except PackNotFoundError:
            await asyncio.to_thread(self._packs.drop_previous, name)
            return
        if model is not None and (model.state == "loading" or model.manifest != installed.manifest):
            return  # not yet decided, or not yet taken in
        if model is not None and model.state == "failed":
            reason = model.error or "it does not load"
            self.failures[name, model.manifest.version] = reason
            log.error("the new version of %s is left again, the former one returns: %s", name, reason)
            await asyncio.to_thread(self._packs.put_back_previous, name)
            await self._refresh()
            return
        if model is not None:
            self.failures.pop((name, model.manifest.version), None)
        await asyncio.to_thread(self._packs.settle_previous, name)
