"""The error of the signing room."""

from __future__ import annotations

from typing import Literal

from appliance.errors import ApplianceError

Reason = Literal[
    "unsigned",  # there is no signature
    "unknown_key",  # signed, by a key that this box does not trust
    "revoked_key",  # signed by a key that was trusted once
    "older_sequence",  # well signed, but older than what was accepted before
    "damaged",  # the signature does not fit the file, or is none
    "wrong_name",  # well signed, but something else than what is asked for
    "invalid_key",  # a key file that is none, or a wrong password
    "store",  # the trust store cannot be read or written
]


class SigningError(ApplianceError):
    """A file, signature or key that is not to be trusted; ``code`` is the ``Reason``, the message is for operators."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message, code=reason)
