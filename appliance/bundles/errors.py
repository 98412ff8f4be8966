"""The errors of the bundles room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class BundleError(ApplianceError):
    """A bundle that is not whole, not what its manifest says, or cannot be put where it should go."""

    status = 400
    type = "invalid_request_error"


class BundleSpaceError(BundleError):
    """The disk has no room for the bundle; nothing was changed."""

    status = 507
