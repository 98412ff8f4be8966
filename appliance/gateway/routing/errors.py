"""The error of this room: a router or provider that is not there, or may not be made so."""

from __future__ import annotations

from appliance.errors import ApplianceError


class RoutingError(ApplianceError):
    """Not found (404), taken (409), inconsistent (403) or of types that do not go together (400)."""

    status = 404
    type = "invalid_request_error"
