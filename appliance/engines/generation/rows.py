"""Which sequence sits in which row of the KV cache, and how many tokens each may hold.

The rows of one decode call must be neighbours, so running sequences fill the front of the cache:
when one ends, the last running one moves into its row. Sequences that are still being prefilled,
or wait for memory, sit anywhere behind.

Memory is granted in blocks under one budget. The sequence admitted first may always grow to the
whole context; the others share what is left beside it. So a sequence that has to wait will always
go on at last, and nobody's work is thrown away.
"""

from __future__ import annotations

from appliance.engines.generation.kv_cache import KvCache
from appliance.engines.generation.sequence import Sequence

BLOCK_TOKENS = 256


class RowTable:
    """The rows of ``cache``. ``budget_tokens`` is at least ``context_length``."""

    def __init__(self, cache: KvCache, *, context_length: int, budget_tokens: int) -> None:
        self._cache = cache
        self._context_length = context_length
        self._shared_tokens = budget_tokens - context_length
        self._rows: list[Sequence | None] = [None] * cache.rows
        self._admitted: list[Sequence] = []
        self._running = 0

    @property
    def admitted(self) -> list[Sequence]:
        """All sequences that have a row, in the order of their admission."""
        return list(self._admitted)

    @property
    def free(self) -> int:
        """How many rows nobody has."""
        return len(self._rows) - len(self._admitted)

    @property
    def running(self) -> list[Sequence]:
        """The sequences of the decode batch, by row from 0."""
        return [sequence for sequence in self._rows[: self._running] if sequence is not None]

    def admit(self, sequence: Sequence, tokens: int) -> bool:
        """Give ``sequence`` a row and memory for ``tokens``; False when there is no room now."""
        row = next((row for row in range(self._running, len(self._rows)) if self._rows[row] is None), None)
        if row is None or not self.grant(sequence, tokens):
            return False
        self._rows[row] = sequence
        sequence.row = row
        self._admitted.append(sequence)
        return True

    def grant(self, sequence: Sequence, tokens: int) -> bool:
        """Make sure that ``sequence`` may hold ``tokens``; False when the memory is taken."""
        if tokens <= sequence.granted:
            return True
        wanted = min(-(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS, self._context_length)
        if self._admitted and self._admitted[0] is not sequence:
            others = sum(other.granted for other in self._admitted[1:] if other is not sequence)
            if others + wanted > self._shared_tokens:
                return False
        sequence.granted = wanted
        return True

    def start(self, sequence: Sequence) -> None:
        """Make ``sequence`` the last row of the decode batch."""
        target = self._running
        occupant = self._rows[target]
        if occupant is not sequence:
            free = self._last_free()
            if occupant is None:
                self._move(sequence, target)
            elif free is None:
                self._swap(sequence, occupant)
            else:
                self._move(occupant, free)
                self._move(sequence, target)
        self._running += 1

    def pause(self, sequence: Sequence) -> None:
        """Take ``sequence`` out of the decode batch; it keeps its memory."""
        self._running -= 1
        last = self._rows[self._running]
        if last is None or last is sequence:
            return
        free = self._last_free()
        if free is None:
            self._swap(sequence, last)
        else:
            hole = sequence.row
            self._move(sequence, free)
            self._move(last, hole)

    def release(self, sequence: Sequence) -> None:
        """Free the row and the memory of ``sequence``."""
        hole = sequence.row
        self._admitted.remove(sequence)
        self._rows[hole] = None
        self._cache.clear(hole)
        sequence.row, sequence.granted = -1, 0
        if hole < self._running:
            self._running -= 1
            last = self._rows[self._running]
            if last is not None:
                self._move(last, hole)

    def reset(self) -> None:
        """Take everything from everybody, whatever state the table is in."""
        for sequence in self._admitted:
            sequence.row, sequence.granted = -1, 0
        self._rows = [None] * len(self._rows)
        self._admitted = []
        self._running = 0
        for row in range(len(self._rows)):
            self._cache.clear(row)

    def is_running(self, sequence: Sequence) -> bool:
        """Return whether ``sequence`` is in the decode batch."""
        return 0 <= sequence.row < self._running

    def _last_free(self) -> int | None:
        rows = range(len(self._rows) - 1, self._running - 1, -1)
        return next((row for row in rows if self._rows[row] is None), None)

    def _move(self, sequence: Sequence, target: int) -> None:
        source = sequence.row
        self._cache.copy(source, target, sequence.length)
        self._cache.clear(source)
        self._rows[source], self._rows[target] = None, sequence
        sequence.row = target

    def _swap(self, one: Sequence, other: Sequence) -> None:
        self._cache.swap(one.row, other.row, one.length, other.length)
        one.row, other.row = other.row, one.row
        self._rows[one.row], self._rows[other.row] = one, other
