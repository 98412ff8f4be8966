"""A pack that replaced another has to load: until it has, the former version is kept, and returns when it does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from appliance.bundles import trial_numbers
from appliance.errors import ApplianceError
from appliance.gateway.catalog import Catalog
from appliance.packs import attempts
from appliance.packs.errors import PackNotFoundError
from appliance.packs.manifest import Manifest
from appliance.packs.store import PackStore
from appliance.signing.errors import SigningError
from appliance.signing.trust import TrustStore

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.5
# A power cut may come while a pack is loaded, also twice; a pack that ends the service does so each time.
MOST_ATTEMPTS = 2


def leave_deadly(packs: PackStore, trust: TrustStore) -> None:
    """Before anything is loaded: leave each version on trial with which starts ended by a kill or a fault of memory.

    What cannot be counted or left is logged: the start goes on.
    """
    for name in packs.previous():
        try:
            if attempts.begin(packs.path, name) < MOST_ATTEMPTS:
                continue
            log.error(
                "the service ended %d times while it loaded the new version of %s: it is left again, the former one "
                "returns",
                MOST_ATTEMPTS,
                name,
            )
            give_way(packs, trust, name, packs.get(name).manifest)
        except (ApplianceError, OSError) as error:
            log.warning("the trial of %s cannot be looked after: %s", name, error)


def give_way(packs: PackStore, trust: TrustStore, name: str, manifest: Manifest | None) -> None:
    """Put the former version in place of one that does not work, whose number counts no more.

    May be cut off at any instant and done again. Raises PackError, OSError.
    """
    try:
        if manifest is not None:
            trial_numbers.withdraw(packs, trust, manifest)
    except SigningError as error:
        # A full disk, say: that the box serves again is worth more.
        log.warning("the number of %s stays the accepted one: %s", name, error)
    packs.put_back_previous(name)
    _decided(packs, name)


def stay(packs: PackStore, trust: TrustStore, name: str, manifest: Manifest | None) -> None:
    """Let a version stay that has loaded, or has nothing to load. Raises PackError, SigningError, OSError."""
    if manifest is not None:
        trial_numbers.keep(packs, trust, manifest)
    packs.settle_previous(name)
    _decided(packs, name)


def _decided(packs: PackStore, name: str) -> None:
    trial_numbers.forget(packs, name)
    attempts.clear(packs.path, name)


class PackTrials:
    """Looks after the kept versions while the service runs. Used on the event loop only.

    ``refresh`` has the catalog take in what is installed. What was interrupted goes on at the next start: the kept
    version is there until one of the two has been decided for.
    """

    def __init__(
        self, packs: PackStore, trust: TrustStore, catalog: Catalog, refresh: Callable[[], Awaitable[None]]
    ) -> None:
        self._packs = packs
        self._trust = trust
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
            except (ApplianceError, OSError) as error:
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
        if installed.manifest is None:
            await self._leave(name, None, installed.problem)
            return
        if model is not None and model.manifest != installed.manifest:
            await self._refresh()
            return
        if model is not None and model.state == "loading":
            return  # not yet decided
        if model is not None and model.state == "failed":
            await self._leave(name, model.manifest, model.error)
            return
        if model is not None:
            self.failures.pop((name, model.manifest.version), None)
        await asyncio.to_thread(stay, self._packs, self._trust, name, installed.manifest)

    async def _leave(self, name: str, manifest: Manifest | None, problem: str | None) -> None:
        reason = problem or "it does not load"
        if manifest is not None:
            self.failures[name, manifest.version] = reason
        log.error("the new version of %s is left again, the former one returns: %s", name, reason)
        await asyncio.to_thread(give_way, self._packs, self._trust, name, manifest)
        await self._refresh()
