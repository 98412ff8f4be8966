"""What the watchdog asks of a running service: does the store answer, do the engines' threads live and get on."""

from __future__ import annotations

import sqlite_utils

from appliance.control.errors import ControlError
from appliance.gateway.catalog import Catalog
from appliance.storage.database import Database

# A run is a chunk of a prompt, a decode step, a batch of an encoder: a second or so, many on a box that swaps. One that
# has had the cores for so long is not slow but stuck, and everybody behind it waits for ever.
LONGEST_RUN_SECONDS = 300.0


class Vitals:
    """The signs of life of a service. Used on the event loop only."""

    def __init__(self, database: Database, catalog: Catalog) -> None:
        self._database = database
        self._catalog = catalog

    def models(self) -> tuple[int, int, int]:
        """Return how many models there are, are being loaded, and cannot be loaded."""
        states = [model.state for model in self._catalog.models()]
        return len(states), states.count("loading"), states.count("failed")

    async def alive(self) -> None:
        """Go through the store's writer and a reader, look at every engine's thread, and at the run that has the cores.

        A worker process that died is no reason to end the service: its supervisor starts another. Raises
        StorageError, ControlError.
        """
        await self._database.write(_one)
        await self._database.read(_one)
        for model in self._catalog.models():
            if not getattr(model.engine, "alive", True):
                raise ControlError(f"the engine of {model.manifest.name} has no thread any more")
        seconds = self._catalog.run_seconds()
        if seconds > LONGEST_RUN_SECONDS:
            raise ControlError(f"a model's run has not come back for {seconds:.0f} s")


def _one(db: sqlite_utils.Database) -> int:
    return int(db.execute("SELECT 1").fetchone()[0])
