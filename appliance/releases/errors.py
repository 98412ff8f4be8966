"""The error of the releases room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class ReleaseError(ApplianceError):
    """A release that cannot be taken into use here, or that was tried and left again."""

    status = 409


class ClosedForWritesError(ReleaseError):
    """A new release is on trial: it answers reads until it has shown that it works."""

    status = 503
    code = "maintenance"
