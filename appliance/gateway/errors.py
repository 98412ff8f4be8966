"""The error of the gateway: a model that is not there, not ready, or of another task."""

from __future__ import annotations

from appliance.errors import ApplianceError, OverloadedError

# Errors repeat the name that was asked for; no pack has one of this length.
LONGEST_NAME = 100
BUDGET_RETRY_SECONDS = 60


class ModelNotFoundError(ApplianceError):
    """No installed pack serves under ``name``; those in ``available`` do. Each API says it in its own words."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, name: str, available: list[str]) -> None:
        self.name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        self.available = available
        super().__init__(f"The model `{self.name}` does not exist.", param="model")


class WrongTaskError(ApplianceError):
    """The model exists but does another task."""

    status = 400
    type = "invalid_request_error"


class NoModelError(WrongTaskError):
    """The request names no model, and there is none to take for it."""


class ModelLoadingError(OverloadedError):
    """The model is being loaded; try again soon."""


class ModelBrokenError(OverloadedError):
    """The model's pack cannot be loaded; an operator has to look at it."""


class ForbiddenModelError(ApplianceError):
    """The role sees the model but may not use it: a limit is missing or 0."""

    status = 403
    type = "permission_error"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__("Insufficient permissions to access the model.", param="model")


class LimitExceededError(ApplianceError):
    """A limit of the caller's own is used up: which kind; ``retry_after`` says when to come back, in seconds."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, kind: str, retry_after: int) -> None:
        super().__init__(message, retry_after=retry_after)
        self.kind = kind


class InsufficientBudgetError(ApplianceError):
    """The caller's budget does not pay for this; the union answers 429, OpenGateLLM's mount 400.

    What other requests of the user reserve comes back when they end, most within ``retry_after`` seconds.
    """

    status = 400
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self) -> None:
        super().__init__("Insufficient budget.", retry_after=BUDGET_RETRY_SECONDS)


class ProviderBusyError(OverloadedError):
    """No provider takes the request now: all are beyond their quality-of-service limit, or unreachable."""


class UpstreamUnavailableError(OverloadedError):
    """A provider cannot be reached, does not answer in time, or fails: another one may do."""

    def __init__(self, message: str, *, retry_after: int = 10) -> None:
        super().__init__(message, retry_after=retry_after)


class ProbeFailedError(ApplianceError):
    """A provider that is to be set up does not answer, or does not have the model."""

    status = 424
    type = "invalid_request_error"

    def __init__(self, model_name: str) -> None:
        super().__init__(f"Model provider {model_name} not reachable.")


class UpstreamError(ApplianceError):
    """An upstream server refused the request: its own status (4xx) and what it said."""

    status = 400
    type = "invalid_request_error"
