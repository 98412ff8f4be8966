"""A tool, and how a family of models writes the call of one."""

from __future__ import annotations

from typing import Any

import msgspec

# More calls at once than any turn needs, and an end for a small model that repeats itself.
MAX_CALLS = 16

# Members of a call that say nothing we need; models write them all the same.
IGNORED_MEMBERS = frozenset({"type"})
# Models mix up the two names of the arguments.
ARGUMENT_MEMBERS = frozenset({"arguments", "parameters"})


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. ``parameters`` is its JSON schema; None = it takes none.

    ``strict`` = its arguments are valid under the schema whenever it is called, not only when it must be.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class CallSyntax(msgspec.Struct, frozen=True, kw_only=True):
    """How a call is written: ``opening`` a JSON object with ``name`` and ``arguments``, ``closing``.

    ``marked``: a call is only what ``opening`` precedes, and it may stand anywhere in the answer;
    otherwise ``opening`` may be left out, and only an answer that begins with the object calls.
    ``padding`` stands around the object, ``separator`` between two calls.
    """

    opening: str
    closing: str
    marked: bool
    arguments: str
    padding: str
    separator: str
