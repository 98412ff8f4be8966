"""What differs between the mounts: one dialect each, and no handler written twice.

``/v1`` is the union of the five APIs. A strict mount is another Dialect given to the same handlers.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from appliance.accounts.keys import Account
from appliance.errors import ApplianceError
from appliance.gateway.errors import (
    ForbiddenModelError,
    InsufficientBudgetError,
    ModelNotFoundError,
    NoModelError,
    WrongTaskError,
)

# The flat error words of vLLM-era clients, by status.
FLAT_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    409: "ConflictError",
    413: "RequestEntityTooLarge",
    422: "UnprocessableEntity",
    424: "FailedDependencyError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """The points where a mount has its own way; the defaults are the union's."""

    name: str
    prefix: str
    # None = the box's configured default.
    chat_temperature: float | None = None
    # The most choices (n, best_of) of one request.
    max_choices: int = 128
    # The most tokens of one completion that may be asked for; None = as many as fit the context.
    max_completion_tokens: int | None = None
    # Whether several choices at temperature 0, which are all the same, are answered.
    greedy_choices: bool = True
    # What an absent ``tool_choice`` means when there are tools.
    default_tool_choice: Literal["auto", "none"] = "auto"
    # Whether ``tool_choice`` may only be "none" or name a tool.
    named_tools_only: bool = False
    # Whether ``tool_choice`` may be the bare name of one of the tools.
    bare_tool_names: bool = False
    # What ``content`` is beside the call of a tool that ``tool_choice`` named.
    named_tool_content: str | None = None
    # Whether ``response_format`` may be a JSON schema.
    json_schema: bool = True
    # What a request that names an unknown model is answered; the text's fields are {name} and {available}.
    unknown_model_status: int = 404
    unknown_model_text: str = "The model `{name}` does not exist."
    # Whether a model that the role may not use is answered like one that does not exist.
    hide_forbidden_models: bool = True
    # What a request that the caller's budget does not pay for is answered.
    budget_status: int = 429
    # Whether transcriptions are always CompactifAI's JSON, whatever else the form asks for.
    plain_transcriptions: bool = False
    # Whether ``owned_by`` in a card is the organization of the router's owner rather than the pack's maker.
    owner_is_organization: bool = False
    # Keys of a model card; None = all that the union knows.
    card_keys: frozenset[str] | None = None
    # Whether wrong fields are 422 with FastAPI's list on every route, not only where its clients call.
    unprocessable_fields: bool = False
    # Whether the bootstrap key is OpenGateLLM's master key: a user 0 without limits, budget and records.
    master_key: bool = False
    # Whether providers may be of this box's own types (local, appliance), and are shown as they are: with the
    # fractions of their parameters, and their URLs as they were written.
    own_provider_types: bool = True
    # Whether roles have limits for the routers that they do not name.
    default_limits: bool = True
    # Whether the usage in answers has what a request cost and burned, besides its tokens.
    full_usage: bool = False
    # Whether every declared field goes to an upstream server, with its default, or only what was sent.
    forward_defaults: bool = False
    # Statuses that carry a top-level ``detail`` beside the error object.
    detail_statuses: frozenset[int] = frozenset({401, 403, 404, 422})
    # Whether errors hold ``detail`` alone, and requests are met as FastAPI meets them: a slash too many is a
    # redirect, a body that is no JSON a 422, a failure plain text.
    detail_only: bool = False
    # What a key that is not live is answered.
    bad_key_status: int = 401
    # What a model of another type is answered; None = what it cannot do.
    wrong_task_status: int = 400
    wrong_task_text: str | None = None
    # Whether a request may leave the choice of the model to the box.
    default_model: bool = True
    # Whether lists of models begin with those to chat with; else they go by id.
    chat_models_first: bool = True
    # The most stop strings.
    max_stops: int = 64
    # Whether several tools may be called at once when the request does not say so.
    parallel_tool_calls: bool = True
    # Whether only the fields that OpenGateLLM declares are checked before a provider is chosen; what is wrong with
    # others is the model server's 400.
    declared_fields_only: bool = False
    # Whether chats know OpenGateLLM's search tool, and the query parameter ``required``.
    search_tool: bool = True
    # Whether answers have the fields that vLLM adds to OpenAI's.
    vllm_fields: bool = True
    # Whether every stream ends with its usage, and names the model as the provider does.
    gateway_streams: bool = False
    # Whether embeddings and rerank have OpenGateLLM's smaller bodies.
    plain_encoding: bool = False
    # Whether ``language`` is the one to answer in, whatever is spoken (and audio forms are OpenGateLLM's).
    output_language: bool = False
    # The most bytes of an audio file; None = what the configuration allows.
    max_audio_bytes: int | None = None

    @property
    def platform(self) -> str:
        """The path before the version: what the API's clients take for the server's root."""
        return self.prefix.removesuffix("/v1")

    def exempts(self, account: Account) -> bool:
        """Tell whether an account's requests have no limits, no budget and no usage records."""
        return self.master_key and account.is_master

    def translated(self, error: ApplianceError) -> ApplianceError:
        """Return an error as the mount has it: which status it knows one by, and in which words."""
        if isinstance(error, InsufficientBudgetError):
            error.status = self.budget_status
            if self.budget_status != 429:
                error.retry_after = None
        elif isinstance(error, ForbiddenModelError) and self.hide_forbidden_models:
            return self.unknown_model(ModelNotFoundError(error.name, []))
        elif isinstance(error, NoModelError) and self.wrong_task_text is not None:
            return self.unknown_model(ModelNotFoundError("", []))
        elif isinstance(error, WrongTaskError) and self.wrong_task_text is not None:
            return ApplianceError(self.wrong_task_text, status=self.wrong_task_status, type=error.type)
        return error

    def unknown_model(self, error: ModelNotFoundError) -> ApplianceError:
        """Return what the mount answers to a request that names a model it does not have."""
        text = self.unknown_model_text.format(name=error.name, available=", ".join(error.available))
        return ApplianceError(
            text, status=self.unknown_model_status, type=error.type, code=error.code, param=error.param
        )

    def error_body(self, error: ApplianceError, detail: Any = None) -> dict[str, Any]:
        """Return the body of an error: OpenAI's object, its flat copy, and ``detail`` where clients read it."""
        if self.detail_only:
            return {"detail": error.message if detail is None else detail}
        body: dict[str, Any] = {
            "error": error_object(error),
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


def error_object(error: ApplianceError) -> dict[str, Any]:
    """Return OpenAI's object for an error, which streams carry on every mount."""
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


# The card of the chat contract (its section 17), without what only OpenGateLLM's clients read.
CHAT_CARD = frozenset(
    {
        *("id", "object", "created", "owned_by", "parameters_number", "capabilities"),
        *("root", "parent", "max_model_len", "permission"),
    }
)

UNION = Dialect(name="union", prefix="/v1", full_usage=True)
COMPRESSA = Dialect(
    name="compressa",
    prefix="/compressa/v1",
    chat_temperature=0.7,
    greedy_choices=False,
    default_tool_choice="none",
    named_tools_only=True,
    named_tool_content="",
    json_schema=False,
    search_tool=False,
    card_keys=CHAT_CARD,
)
COMPACTIFAI = Dialect(
    name="compactifai",
    prefix="/compactifai/v1",
    chat_temperature=1.0,
    max_choices=1,
    max_completion_tokens=150_000,
    bare_tool_names=True,
    search_tool=False,
    unknown_model_status=400,
    unknown_model_text="Invalid request: Model '{name}' not found; available: [{available}]",
    plain_transcriptions=True,
    card_keys=CHAT_CARD,
)
OPENGATELLM = Dialect(
    name="opengatellm",
    prefix="/opengatellm/v1",
    chat_temperature=0.7,
    unknown_model_text="Model not found.",
    hide_forbidden_models=False,
    budget_status=400,
    unprocessable_fields=True,
    master_key=True,
    full_usage=True,
    forward_defaults=True,
    owner_is_organization=True,
    detail_only=True,
    bad_key_status=403,
    wrong_task_status=422,
    wrong_task_text="Wrong model type.",
    default_model=False,
    chat_models_first=False,
    max_stops=4,
    parallel_tool_calls=False,
    declared_fields_only=True,
    vllm_fields=False,
    gateway_streams=True,
    plain_encoding=True,
    output_language=True,
    max_audio_bytes=20 << 20,
    default_limits=False,
    own_provider_types=False,
    card_keys=frozenset(
        {"id", "type", "aliases", "created", "owned_by", "max_context_length", "costs", "object"}
    ),
)

# The union on the routes that only OpenGateLLM has: there it says of models what that API says.
UNION_OF_ONE = msgspec.structs.replace(
    UNION,
    unknown_model_text=OPENGATELLM.unknown_model_text,
    hide_forbidden_models=OPENGATELLM.hide_forbidden_models,
    budget_status=OPENGATELLM.budget_status,
    wrong_task_status=OPENGATELLM.wrong_task_status,
    wrong_task_text=OPENGATELLM.wrong_task_text,
)

# The mounts beside the union's.
STRICT = (COMPRESSA, COMPACTIFAI, OPENGATELLM)


def dialect_at(path: str) -> Dialect:
    """Return the dialect of the mount that a path lies in, also where there is no route."""
    for dialect in STRICT:
        if path == dialect.platform or path.startswith(dialect.platform + "/"):
            return dialect
    return UNION
