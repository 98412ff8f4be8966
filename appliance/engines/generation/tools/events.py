"""What a parsed answer consists of: texts and calls, in the order they come."""

from __future__ import annotations

import msgspec


class Content(msgspec.Struct, frozen=True):
    """Text of the answer."""

    text: str


class CallBegin(msgspec.Struct, frozen=True):
    """A call of ``name`` begins; ``index`` counts the answer's calls from 0."""

    index: int
    name: str


class Arguments(msgspec.Struct, frozen=True):
    """The next piece of the JSON text of a call's arguments, as the model wrote it."""

    index: int
    piece: str


class CallEnd(msgspec.Struct, frozen=True):
    """Nothing more comes of that call."""

    index: int


ToolEvent = Content | CallBegin | Arguments | CallEnd


class EventLog:
    """The events since they were last taken; neighbouring pieces of one text are one event."""

    def __init__(self) -> None:
        self._events: list[ToolEvent] = []
        self._pieces: list[str] = []
        self._piece_of: int | None = None  # the call whose arguments the pieces are, None = content

    def content(self, text: str) -> None:
        """Add text of the answer."""
        self._piece(text, None)

    def begin(self, index: int, name: str) -> None:
        """Begin a call."""
        self._join()
        self._events.append(CallBegin(index, name))

    def arguments(self, index: int, text: str) -> None:
        """Add to a call's arguments."""
        self._piece(text, index)

    def end(self, index: int) -> None:
        """End a call."""
        self._join()
        self._events.append(CallEnd(index))

    def take(self) -> list[ToolEvent]:
        """Return the events, and forget them."""
        self._join()
        events, self._events = self._events, []
        return events

    def _piece(self, text: str, call: int | None) -> None:
        if call != self._piece_of:
            self._join()
            self._piece_of = call
        self._pieces.append(text)

    def _join(self) -> None:
        text, call = "".join(self._pieces), self._piece_of
        if text:
            self._events.append(Content(text) if call is None else Arguments(call, text))
        self._pieces.clear()
