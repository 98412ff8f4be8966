"""A pack that was installed has to load: until it has, the version before is kept, and returns when it does not.

Without a version before, the pack stays as it is and is tried again by each start, and by the same archive; its
number does not count until it has loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from appliance.bundles import trial_numbers
from appliance.errors import ApplianceError
from appliance.gateway.catalog import Catalog, ServedModel
from appliance.gateway.engines import SERVED_TASKS
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
LEFT_OUT = (
    f"the service ended {MOST_ATTEMPTS} times while it was being loaded. Importing it again, or a restart in good "
    "order, tries it once more"
)


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """Why a version did not come to serve, and whether the one before it does again."""

    reason: str
    former_returned: bool


def leave_deadly(packs: PackStore, trust: TrustStore) -> dict[str, str]:
    """Before anything is loaded: leave each version on trial with which starts ended by a kill or a fault of memory.

    Returns those without a version before that are not to be loaded now, with the reason. Notes of no trial go. What
    cannot be counted or left is logged: the start goes on.
    """
    former, tried = packs.previous(), on_trial(packs)
    # How many starts ended before this one, with the packs that have nothing to go back to.
    ended: dict[str, int] = {}
    for name in sorted({*tried, *trial_numbers.undecided(packs)}):
        try:
            if name not in tried:
                trial_numbers.forget(packs, name)
                continue
            before = attempts.begin(packs.path, name)
            if name not in former:
                ended[name] = before
            elif before >= MOST_ATTEMPTS:
                log.error(
                    "the service ended %d times while it loaded the new version of %s: it is left again, the former "
                    "one returns",
                    MOST_ATTEMPTS,
                    name,
                )
                give_way(packs, trust, name, packs.get(name).manifest)
        except (ApplianceError, OSError) as error:
            log.warning("the trial of %s cannot be looked after: %s", name, error)
    return _left_out(packs, ended)


def _left_out(packs: PackStore, ended: dict[str, int]) -> dict[str, str]:
    """Return the packs to leave out, of those with which so many starts ended.

    Packs of a new box are loaded together, and one of them ends it: of several the largest is left out first, and
    the others have as many starts once more.
    """
    left_out = {name for name, before in ended.items() if before > MOST_ATTEMPTS}
    sizes: dict[str, int] = {}
    for pack in packs.list():
        if ended.get(pack.name) == MOST_ATTEMPTS and pack.manifest and pack.manifest.task in SERVED_TASKS:
            sizes[pack.name] = pack.manifest.memory_bytes
    if sizes:
        largest = max(sizes, key=lambda name: sizes[name])
        left_out.add(largest)
        for name in sizes.keys() - {largest}:
            with suppress(OSError):  # it is left out earlier, then
                attempts.clear(packs.path, name)
                attempts.begin(packs.path, name)
    for name in sorted(left_out):
        log.error("%s is left out: %s", name, LEFT_OUT)
    return dict.fromkeys(left_out, LEFT_OUT)


def on_trial(packs: PackStore) -> tuple[str, ...]:
    """Return the names of packs that have not shown yet that they load. Raises PackError, OSError."""
    return (
        *packs.previous(),
        *(name for name in trial_numbers.undecided(packs) if trial_numbers.is_first(packs, name)),
    )


def give_way(packs: PackStore, trust: TrustStore, name: str, manifest: Manifest | None) -> None:
    """Put the former version in place of one that does not work, whose number counts no more.

    May be cut off at any instant and done again. Raises PackError, OSError.
    """
    _withdraw_number(packs, trust, name, manifest)
    packs.put_back_previous(name)
    _decided(packs, name)


def _withdraw_number(packs: PackStore, trust: TrustStore, name: str, manifest: Manifest | None) -> None:
    try:
        if manifest is not None:
            trial_numbers.withdraw(packs, trust, manifest)
    except SigningError as error:
        # A full disk, say: that the box serves again is worth more.
        log.warning("the number of %s stays the accepted one: %s", name, error)


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
        # Packs without a version before, as they failed.
        self._failed: dict[str, ServedModel] = {}

    async def watch(self) -> None:
        """Settle every trial as soon as its model has loaded or failed."""
        while True:
            try:
                for name in await asyncio.to_thread(on_trial, self._packs):
                    await self._settle(name)
            except (ApplianceError, OSError) as error:
                log.warning("packs of before cannot be looked after: %s", error)
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def outcome(self, name: str, version: str) -> Left | None:
        """Wait until a version that came in serves, or the one before does again; return why it does not, or None."""
        if name not in await asyncio.to_thread(self._packs.previous):
            # So that an earlier failure of the same version is not taken for this one's.
            await self._refresh()
        while name in await asyncio.to_thread(on_trial, self._packs):
            failed = self._failed.get(name)
            if failed is not None and failed is self._model(name):
                return Left(reason=_reason(failed.error), former_returned=False)
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        reason = self.failures.get((name, version))
        if reason is not None:
            # It is back on the disk; to serve again it has to be taken in and to load.
            await self._refresh()
        while (model := self._model(name)) is not None and model.state == "loading":  # noqa: ASYNC110 - a thread loads it
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        if reason is not None:
            return Left(reason=reason, former_returned=True)
        # One without a signature and without a version before is on no trial.
        failed = model if model is not None and model.state == "failed" else None
        return None if failed is None else Left(reason=_reason(failed.error), former_returned=False)

    def _model(self, name: str) -> ServedModel | None:
        return {model.manifest.name: model for model in self._catalog.models()}.get(name)

    async def _settle(self, name: str) -> None:
        model = self._model(name)
        first = await asyncio.to_thread(trial_numbers.is_first, self._packs, name)
        try:
            installed = await asyncio.to_thread(self._packs.get, name)
        except PackNotFoundError:
            await asyncio.to_thread(self._packs.drop_previous, name)
            return
        if installed.manifest is None:
            await self._leave(name, None, installed.problem)
            return
        if model is None and installed.manifest.task in SERVED_TASKS:
            await self._refresh()
            return
        if model is not None and model.manifest != installed.manifest:
            await self._refresh()
            return
        if model is not None and model.state == "loading":
            return  # not yet decided
        if model is not None and model.state == "failed" and first:
            await self._free_number(name, model)
            return
        if model is not None and model.state == "failed":
            await self._leave(name, model.manifest, model.error)
            return
        if model is not None:
            self.failures.pop((name, model.manifest.version), None)
        await asyncio.to_thread(stay, self._packs, self._trust, name, installed.manifest)

    async def _free_number(self, name: str, model: ServedModel) -> None:
        """Let the number of a version without one before not count, until it loads after all."""
        if self._failed.get(name) is model:
            return
        log.error("%s does not load: it is tried again at the next start, or by another import", name)
        await asyncio.to_thread(_withdraw_number, self._packs, self._trust, name, model.manifest)
        if model.error != LEFT_OUT:
            await asyncio.to_thread(attempts.clear, self._packs.path, name)
        self._failed[name] = model

    async def _leave(self, name: str, manifest: Manifest | None, problem: str | None) -> None:
        reason = _reason(problem)
        if manifest is not None:
            self.failures[name, manifest.version] = reason
        log.error("the new version of %s is left again, the former one returns: %s", name, reason)
        await asyncio.to_thread(give_way, self._packs, self._trust, name, manifest)
        await self._refresh()


def _reason(problem: str | None) -> str:
    return problem or "it does not load"
