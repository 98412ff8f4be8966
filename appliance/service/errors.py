"""The error of the service room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class ServiceError(ApplianceError):
    """What the service manager handed over, or where the service shall listen, cannot be used."""

    status = 500
