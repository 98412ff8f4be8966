"""Tool calls in an answer that arrives in pieces: text, and calls whose arguments go on as they come.

The parser is one coroutine that takes the answer character by character, so that where the pieces
are cut can make no difference.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Generator
from typing import TypeVar

from appliance.engines.generation.tools.events import EventLog, ToolEvent
from appliance.engines.generation.tools.syntax import (
    ARGUMENT_MEMBERS,
    IGNORED_MEMBERS,
    MAX_CALLS,
    CallSyntax,
)

_SPACE = " \t\r\n"
_MEMBERS = ARGUMENT_MEMBERS | IGNORED_MEMBERS | {"name"}

T = TypeVar("T")
# A step of the coroutine: it yields for a character, and returns what it found.
Step = Generator[None, str, T]


class ToolCallParser:
    """Parses the answer of one choice.

    ``names`` are the tools there are: what looks like a call of another is text. With ``forced``
    the answer is known to be calls alone (a grammar saw to it), so nothing in it is ever text; if
    there is but one name, it is called even when the answer ends before its name. Not ``parallel``:
    what follows the first call is dropped.
    """

    def __init__(self, syntax: CallSyntax, names: Collection[str], *, parallel: bool, forced: bool) -> None:
        self._syntax = syntax
        self._names = frozenset(names)
        self._forced = forced
        self._marked = syntax.marked and not forced
        self._most = MAX_CALLS if parallel else 1
        self._calls = 0
        self._plain = False  # no call can come any more
        # Characters read but not decided yet; how many of them end the opening marker; those to read again.
        self._held: list[str] = []
        self._marker_end = 0
        self._again: deque[str] = deque()
        self._name: str | None = None
        self._begun = False
        self._has_arguments = False
        self._kept_arguments: list[str] = []
        self._log = EventLog()
        self._steps = self._run()
        next(self._steps)

    @property
    def finished(self) -> bool:
        """Whether all that may still come is dropped: the only call that is wanted is there."""
        return self._calls >= self._most

    def push(self, text: str) -> list[ToolEvent]:
        """Take the next piece of the answer; return what is now certain, neighbouring texts joined."""
        for character in text:
            self._steps.send(character)
        return self._log.take()

    def flush(self, *, cut: bool = False) -> list[ToolEvent]:
        """Return what was still undecided at the end of the answer; ``cut`` = the length limit ended it.

        An unfinished call whose name is known keeps its arguments so far. Anything else unfinished is
        text, unless it was ``cut`` while it could still become a call.
        """
        if not self.finished:
            if self._begun or self._name is not None:
                self._begin_call()
                self._end_call()
            elif self._forced and not self._plain:
                self._call_the_only_one()
            elif not self._leftover_markup(cut):
                self._pass_content()
        self._held.clear()
        return self._log.take()

    def _call_the_only_one(self) -> None:
        if len(self._names) == 1 and not self._calls:
            self._name = next(iter(self._names))
            self._begin_call()
            self._end_call()

    def _leftover_markup(self, cut: bool) -> bool:
        """Whether the held characters are markup that no text should show."""
        held = "".join(self._held).strip(_SPACE)
        after = self._syntax.closing or self._syntax.separator.strip(_SPACE)
        if self._calls and after.startswith(held):
            return True
        if not cut or not self._marked:
            return False
        return self._marker_end > 0 or (len(held) > 1 and self._syntax.opening.startswith(held))

    def _run(self) -> Step[None]:
        while not self.finished:
            if self._plain or not (yield from self._opened()):
                self._plain = True
                yield from self._text()
            try:
                yield from self._call()
            except _NotACallError:
                if not self._begun:
                    self._give_up()
                    continue
                self._unread(1)
                yield from self._skip_to_closing()
            self._end_call()
        while True:
            yield

    # Between calls

    def _opened(self) -> Step[bool]:
        """Read up to where a call may begin; whether one may."""
        if self._calls and (yield from self._optional(self._syntax.closing)):
            self._held.clear()
        if self._marked:
            yield from self._find_opening()
            self._marker_end = len(self._held)
            return True
        if self._calls:
            yield from self._optional(self._syntax.separator.strip(_SPACE))
        yield from self._optional(self._syntax.opening)
        character = yield from self._visible()
        self._unread(1)
        return character == "{"

    def _find_opening(self) -> Step[None]:
        """Pass on text up to the opening marker. Spaces before the marker are part of it."""
        opening, matched = self._syntax.opening, 0
        while matched < len(opening):
            character = yield from self._read()
            if character == opening[matched]:
                matched += 1
            elif matched:  # the marker's first character is in it only once
                self._unread(1)
                self._pass_content()
                matched = 0
            elif character not in _SPACE:
                self._pass_content()

    def _text(self) -> Step[None]:
        """Pass on all that comes."""
        while True:
            self._pass_content()
            yield from self._read()

    def _give_up(self) -> None:
        """It is no call: up to the marker it is text, and behind it a call may begin again."""
        if self._marked:
            self._unread(len(self._held) - self._marker_end)
        else:
            self._plain = True
        self._pass_content()
        self._reset()

    def _skip_to_closing(self) -> Step[None]:
        """Drop the rest of a call whose JSON broke after its arguments had begun to go out."""
        closing, matched = self._syntax.closing, 0
        while not closing or matched < len(closing):
            character = yield from self._read()
            self._held.clear()
            if closing:
                matched = matched + 1 if character == closing[matched] else int(character == closing[0])

    # A call

    def _call(self) -> Step[None]:
        """Read the JSON object of a call. Raises _NotACallError right behind the character that breaks it."""
        if (yield from self._visible()) != "{":
            raise _NotACallError
        character = yield from self._visible()
        while character != "}":
            if character != '"':
                raise _NotACallError
            key = yield from self._string()
            if not self._begun and key not in _MEMBERS:
                raise _NotACallError
            if (yield from self._visible()) != ":":
                raise _NotACallError
            yield from self._member(key)
            character = yield from self._visible()
            if character == ",":
                character = yield from self._visible()
            elif character != "}":
                raise _NotACallError
        if self._begun:
            return
        if self._name is None or not self._marked:
            raise _NotACallError
        self._kept_arguments = ["{}"]
        self._begin_call()

    def _member(self, key: str) -> Step[None]:
        character = yield from self._visible()
        if key == "name" and self._name is None:
            name = (yield from self._string()) if character == '"' else ""
            if name not in self._names:
                raise _NotACallError
            self._name = name
            if self._has_arguments:
                self._begin_call()
            return
        self._unread(1)
        if key in ARGUMENT_MEMBERS and not self._has_arguments:
            yield from self._read_arguments(character)
        else:
            yield from self._value(_drop)

    def _read_arguments(self, first: str) -> Step[None]:
        """Read the arguments; an object goes out as it comes once the name is known."""
        if self._name is not None and first == "{":
            self._begin_call()
            yield from self._value(self._pass_arguments)
        else:
            yield from self._value(self._kept_arguments.append)
            self._kept_arguments = [_object_text("".join(self._kept_arguments))]
            if self._name is not None:
                self._begin_call()
        self._has_arguments = True

    def _value(self, sink: Callable[[str], None]) -> Step[None]:
        """Read a JSON value into ``sink``; only its brackets and strings are looked at."""
        depth = 0
        while True:
            character = yield from self._read()
            if not depth and character in _SPACE + ",}]":
                self._unread(1)
                return
            if character == self._syntax.closing[:1]:
                raise _NotACallError
            sink(character)
            if character == '"':
                yield from self._rest_of_string(sink)
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth -= 1
            if not depth and character in '"}]':
                return

    def _string(self) -> Step[str]:
        """Read the rest of a JSON string; return its text."""
        parts = ['"']
        yield from self._rest_of_string(parts.append)
        try:
            return str(json.loads("".join(parts), strict=False))
        except ValueError:
            raise _NotACallError from None

    def _rest_of_string(self, sink: Callable[[str], None]) -> Step[None]:
        closing = self._syntax.closing
        while True:
            character = yield from self._read()
            # JSON has no bare line break inside a string: before the marker, the string was left open.
            if character == "\n" and closing and (yield from self._matches(closing)):
                self._unread(len(closing))
                raise _NotACallError
            sink(character)
            if character == '"':
                return
            if character == "\\":
                sink((yield from self._read()))

    # Characters

    def _read(self) -> Step[str]:
        character = self._again.popleft() if self._again else (yield)
        self._held.append(character)
        return character

    def _unread(self, count: int) -> None:
        for _ in range(count):
            self._again.appendleft(self._held.pop())

    def _visible(self) -> Step[str]:
        """Read up to and with the next character that is no space."""
        character = yield from self._read()
        while character in _SPACE:
            character = yield from self._read()
        return character

    def _matches(self, literal: str) -> Step[bool]:
        """Read ``literal``, or nothing when it is not what comes."""
        for count, expected in enumerate(literal, 1):
            if (yield from self._read()) != expected:
                self._unread(count)
                return False
        return True

    def _optional(self, literal: str) -> Step[bool]:
        """Read spaces and then ``literal``, if it is there; whether it was."""
        if not literal:
            return False
        yield from self._visible()
        self._unread(1)
        return (yield from self._matches(literal))

    # Events

    def _begin_call(self) -> None:
        """Let the call begin, with the arguments that were kept until now, if it has not begun."""
        if self._begun or self._name is None:
            return
        self._begun = True
        self._log.begin(self._calls, self._name)
        self._pass_arguments("".join(self._kept_arguments))

    def _end_call(self) -> None:
        self._log.end(self._calls)
        self._calls += 1
        self._held.clear()
        self._reset()

    def _reset(self) -> None:
        self._marker_end = 0
        self._name = None
        self._begun = self._has_arguments = False
        self._kept_arguments = []

    def _pass_arguments(self, text: str) -> None:
        self._held.clear()
        self._log.arguments(self._calls, text)

    def _pass_content(self) -> None:
        self._log.content("".join(self._held))
        self._held.clear()


class _NotACallError(Exception):
    """What was read is not, or no longer, the JSON of a call."""


def _object_text(raw: str) -> str:
    """Return the arguments as the text of an object where they are null or an object inside a string."""
    if raw in ("", "null"):
        return "{}"
    if raw.startswith('"'):
        try:
            inside = str(json.loads(raw, strict=False))
        except ValueError:
            return raw
        return inside if inside.strip(_SPACE).startswith("{") else raw
    return raw


def _drop(text: str) -> None:
    """Take a value that nobody needs."""
