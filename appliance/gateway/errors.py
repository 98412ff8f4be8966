"""The error of the gateway: a model that is not there, not ready, or of another task."""

from __future__ import annotations

from appliance.errors import ApplianceError, OverloadedError


class ModelNotFoundError(ApplianceError):
    """No installed pack serves under this name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name}` does not exist.", param="model")


class WrongTaskError(ApplianceError):
    """The model exists but does another task."""

    status = 400
    type = "invalid_request_error"


class ModelLoadingError(OverloadedError):
    """The model is being loaded; try again soon."""


class ModelBrokenError(OverloadedError):
    """The model's pack cannot be loaded; an operator has to look at it."""
