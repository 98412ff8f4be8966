"""Stop strings in a growing text: where it ends, and how much of it is final already."""

from __future__ import annotations


class StopMatcher:
    """Finds the first stop string in text that arrives in pieces.

    ``stops`` are non-empty. Text that could still become part of a stop string is held back: the
    longest suffix that is a proper prefix of some stop string, nothing more. With ``included`` the
    text ends behind the stop string instead of before it.
    """

    def __init__(self, stops: tuple[str, ...], *, included: bool = False) -> None:
        self._stops = stops
        self._included = included
        self._longest = max(map(len, stops), default=0)
        self._first_characters = {stop[0] for stop in stops}
        self._held = ""

    def push(self, piece: str, *, search: bool = True) -> tuple[str, str | None]:
        """Take the next piece; return the text that is now final, and the stop string that matched.

        Of several in the text the one that starts first matches, then the first in request order;
        what follows it is dropped. Without ``search`` nothing matches in this piece.
        """
        if not self._stops:
            return piece, None
        text = self._held + piece
        matches = [
            (start, order)
            for order, stop in enumerate(self._stops)
            if search and (start := text.find(stop)) >= 0
        ]
        if matches:
            start, order = min(matches)
            stop = self._stops[order]
            self._held = ""
            return text[: start + len(stop)] if self._included else text[:start], stop
        held_from = self._unfinished(text)
        self._held = text[held_from:]
        return text[:held_from], None

    def flush(self) -> str:
        """Return the text still held back: the answer ended without a stop string."""
        text, self._held = self._held, ""
        return text

    def _unfinished(self, text: str) -> int:
        """Return where the longest suffix starts that is a proper prefix of some stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                suffix = text[start:]
                if any(stop.startswith(suffix) for stop in self._stops):
                    return start
        return len(text)
