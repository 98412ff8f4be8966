"""The error of the stores."""

from __future__ import annotations

from appliance.errors import ApplianceError


class StorageError(ApplianceError):
    """A store that cannot be opened, read or written."""

    status = 500


class StoreFullError(StorageError):
    """Nothing was written: the disk is full, or the write queue is."""

    status = 503
