"""The error of the engines: a request that an engine refuses or cannot finish."""

from __future__ import annotations

from appliance.errors import ApplianceError


class EngineError(ApplianceError):
    """An inference engine failed; the request may be sent again."""

    status = 500


class InputRefusedError(EngineError):
    """The input cannot be used: too long, undecodable, outside the vocabulary."""

    status = 400
    type = "invalid_request_error"
