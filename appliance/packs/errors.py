"""The error of the packs room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class PackError(ApplianceError):
    """A pack that is not there, not whole, or not what it says."""

    status = 400
    type = "invalid_request_error"
