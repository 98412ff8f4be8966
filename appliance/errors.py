"""The root of every error a client may see; each domain derives its own class from it."""

from __future__ import annotations

LONGEST_MESSAGE = 2000


class ApplianceError(Exception):
    """An error with an HTTP status and a text that is safe to show.

    ``status`` is the HTTP status, ``type`` OpenAI's error type word, ``code`` a machine-readable
    word or None, ``param`` the offending request field or None, ``retry_after`` whole seconds for
    the ``Retry-After`` header or None. The cause of an internal error goes to the log, not here.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,  # noqa: A002 - the published error object calls it so
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        # Messages may quote the request: never much of it, and never what cannot be encoded again.
        shown = message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "…"
        self.message = shown.encode("utf-8", "replace").decode()
        super().__init__(self.message)
        self.param = param
        self.retry_after = retry_after
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type
        if code is not None:
            self.code = code


class InvalidRequestError(ApplianceError):
    """The request itself is wrong: malformed, out of range, or asks for what is not served."""

    status = 400
    type = "invalid_request_error"


class OverloadedError(ApplianceError):
    """The box cannot take the work now; the client should retry."""

    status = 503

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message, retry_after=retry_after)
