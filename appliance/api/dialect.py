"""What differs between the mounts: one dialect each, and no handler written twice.

``/v1`` is the union of the five APIs. A strict mount is another Dialect given to the same handlers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.errors import ApplianceError

# The flat error words of vLLM-era clients, by status.
FLAT_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    413: "RequestEntityTooLarge",
    422: "UnprocessableEntity",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """The points where a mount has its own way."""

    name: str
    prefix: str
    # None = the box's configured default.
    chat_temperature: float | None = None
    # Fields that this API's clients do not know and that are refused there.
    refused_fields: frozenset[str] = frozenset()
    # Keys of a model card; None = all that the union knows.
    card_keys: frozenset[str] | None = None
    # Statuses that carry a top-level ``detail`` beside the error object.
    detail_statuses: frozenset[int] = frozenset({401, 403, 404, 422})

    def error_body(self, error: ApplianceError, detail: Any = None) -> dict[str, Any]:
        """Return the body of an error: OpenAI's object, its flat copy, and ``detail`` where clients read it."""
        body: dict[str, Any] = {
            "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
            "object": "error",
            "message": error.message,
            "type": FLAT_TYPES.get(error.status, "APIError"),
            "param": error.param,
            "code": error.status,
        }
        if detail is not None or error.status in self.detail_statuses:
            body["detail"] = error.message if detail is None else detail
        return body

    def card(self, card: dict[str, Any]) -> dict[str, Any]:
        """Return a model card with the keys this API shows."""
        if self.card_keys is None:
            return card
        return {key: value for key, value in card.items() if key in self.card_keys}


UNION = Dialect(name="union", prefix="/v1")
