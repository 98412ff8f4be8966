"""The error of the audit room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class AuditError(ApplianceError):
    """A question about the audit log that makes no sense."""

    status = 400
    type = "invalid_request_error"
