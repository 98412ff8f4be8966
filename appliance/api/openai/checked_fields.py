"""On OpenGateLLM's mount the gateway checks the fields it declares, and the model server behind it the others.

So what it does not declare goes to servers on other machines as it came, and a model of this box refuses it as one
of those would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.api.dialect import Dialect
from appliance.api.field_errors import InvalidFieldError
from appliance.errors import InvalidRequestError


@contextmanager
def as_model_server(dialect: Dialect) -> Iterator[None]:
    """Let fields that are found wrong in this block be a model server's 400, where the declared ones were checked."""
    try:
        yield
    except InvalidFieldError as error:
        if not dialect.declared_fields_only:
            raise
        raise InvalidRequestError(error.message, param=error.param) from None
