"""The error of the TLS room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class TlsError(ApplianceError):
    """A certificate or key that is not there, not readable, or does not fit."""

    status = 500
