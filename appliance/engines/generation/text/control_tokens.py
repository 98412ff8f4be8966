"""Control tokens belong to the chat template alone: a user's text never becomes one.

Before rendering, every character of a control token spelled out in a user's strings (and the end
of a string that is the start of one) gets a marker behind it, a Unicode noncharacter that occurs
nowhere else in the request. After rendering, only what no marker is inside or behind is the
template's own. Ordinary texts get no marker, so they render and tokenise exactly as without this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from appliance.engines.errors import InputRefusedError

# Noncharacters are never meant for interchange (Unicode 23.7); one that the request lacks is the marker.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
TEMPLATE_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MAX_DEPTH = 64


class ControlTokens:
    """The control tokens of a vocabulary as they are spelled in text."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = sorted({token for token in tokens if token}, key=lambda token: (-len(token), token))
        alternatives = "|".join(map(re.escape, self.tokens))
        self._alternatives = alternatives
        self._whole = re.compile(f"(?:{alternatives})") if self.tokens else None
        starts = {token[:length] for token in self.tokens for length in range(1, len(token))}
        self._starts = tuple(sorted(starts))

    def protect(self, document: Any, marker: str) -> Any:
        """Return ``document`` (JSON values) with every control token in its strings broken by ``marker``.

        The roles of the chat protocol are left alone; any other role that is part of a control
        token is refused, since templates build control tokens from roles (``<|role|>``).
        Raises InputRefusedError for such a role.
        """
        if isinstance(document, str):
            return self._protect_text(document, marker)
        if isinstance(document, dict):
            return {
                self._protect_text(key, marker): self._check_role(value)
                if key == "role" and isinstance(value, str)
                else self.protect(value, marker)
                for key, value in document.items()
            }
        if isinstance(document, list | tuple):
            return [self.protect(value, marker) for value in document]
        return document

    def split(self, rendered: str, marker: str) -> list[str]:
        """Split a rendered template at its control tokens: texts at even places, control tokens at odd ones.

        What has ``marker`` behind it is a user's, and text.
        """
        if self._whole is None:
            return [rendered]
        return re.split(f"({self._alternatives})(?!{re.escape(marker)})", rendered)

    def _protect_text(self, text: str, marker: str) -> str:
        if self._whole is None:
            return text
        # Behind every character, so that no other token, of one character or overlapping, is left of it.
        text = self._whole.sub(lambda found: "".join(each + marker for each in found[0]), text)
        # A token that starts here must not be completed by what the template writes next.
        return text + marker if text.endswith(self._starts) else text

    def _check_role(self, role: str) -> str:
        name = role.strip().lower()
        if name and role not in TEMPLATE_ROLES and any(name in token.lower() for token in self.tokens):
            raise InputRefusedError(f"The message role {role!r} is not allowed.", param="messages")
        return role


def choose_marker(document: Any) -> str:
    """Return a noncharacter that occurs in no string of ``document``.

    Raises InputRefusedError when every one occurs, or the document is nested too deeply.
    """
    unused = set(NONCHARACTERS)
    for text in _strings(document, 0):
        if not text.isascii():
            unused.difference_update(text)
    if not unused:
        raise InputRefusedError("The messages contain every Unicode noncharacter.", param="messages")
    return min(unused)


def _strings(document: Any, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise InputRefusedError("The messages are nested too deeply.", param="messages")
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            yield str(key)
            yield from _strings(value, depth + 1)
    elif isinstance(document, list | tuple):
        for value in document:
            yield from _strings(value, depth + 1)
