"""The error of the accounts room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class AccountError(ApplianceError):
    """An account or key that is not there or may not be made so."""

    status = 400
    type = "invalid_request_error"


class TakenEmailError(AccountError):
    """Another user has this e-mail."""

    status = 409

    def __init__(self) -> None:
        super().__init__("User already exists.")


class AuthenticationError(AccountError):
    """No usable key came with the request."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDeniedError(AccountError):
    """The user's role lacks the permission that this needs."""

    status = 403
    type = "permission_error"
