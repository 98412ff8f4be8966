"""The error of the control room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class ControlError(ApplianceError):
    """A command that cannot reach the stores, or that the service refused."""

    status = 400
