"""What the watchdog asks of a running service: does the store answer, do the engines' threads live."""

from __future__ import annotations

import sqlite_utils

from appliance.control.errors import ControlError
from appliance.gateway.catalog import Catalog
from appliance.storage.database import Database


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
        """Go through the store's writer and a reader, and look at every engine's thread.

        A worker process that died is no reason to end the service: its supervisor starts another. Raises
        StorageError, ControlError.
        """
        await self._database.write(_one)
        await self._database.read(_one)
        for model in self._catalog.models():
            if not getattr(model.engine, "alive", True):
                raise ControlError(f"the engine of {model.manifest.name} has no thread any more")


def _one(db: sqlite_utils.Database) -> int:
    return int(db.execute("SELECT 1").fetchone()[0])
