"""Which sequence sits in which row of the KV cache, how many tokens each may hold, and what stays behind.

The rows of one decode call must be neighbours, so running sequences fill a window of the cache.
When the first of them ends, the window moves on; when another does, the last one moves into its
row. Sequences that are still being prefilled, or wait for memory, sit anywhere behind. The prompt
of a finished sequence stays where it is as long as memory lasts, for the next one that begins like
it.

Memory is granted in blocks under one budget. The sequence admitted first may always grow to the
whole context; the others share what is left beside it, and cached prompts have what nobody wants.
So a sequence that has to wait will always go on at last, and nobody's work is thrown away.
"""

from __future__ import annotations

import itertools

from appliance.engines.generation.scheduling.kv_cache import KvCache
from appliance.engines.generation.scheduling.prefixes import (
    LEAST_SHARED_TOKENS,
    CachedPrefix,
    common_tokens,
    shared_tokens,
)
from appliance.engines.generation.scheduling.sequence import Sequence

BLOCK_TOKENS = 256
# A cached prompt of which a new one leaves less than this unused becomes the new one's, without a copy.
TAKEN_OVER_BELOW = 64


class RowTable:
    """The rows of ``cache``: ``width`` sequences at once, and as many cached prompts as there is room for.

    ``budget_tokens`` is at least ``context_length``; ``cached_tokens`` bounds what cached prompts hold.
    """

    def __init__(
        self, cache: KvCache, *, width: int, context_length: int, budget_tokens: int, cached_tokens: int
    ) -> None:
        self._cache = cache
        self._width = width
        self._context_length = context_length
        self._shared_tokens = budget_tokens - context_length
        self._cached_tokens = min(cached_tokens, self._shared_tokens)
        self._rows: list[Sequence | CachedPrefix | None] = [None] * cache.rows
        self._admitted: list[Sequence] = []
        self._cached: list[CachedPrefix] = []
        self._uses = itertools.count()
        self._first = 0
        self._running = 0
        # Tokens of admitted prompts, and how many of them were found in the cache.
        self.prompt_tokens = 0
        self.reused_tokens = 0

    @property
    def admitted(self) -> list[Sequence]:
        """All sequences that have a row, in the order of their admission."""
        return list(self._admitted)

    @property
    def free(self) -> int:
        """How many more sequences could be admitted if there were memory."""
        return max(0, self._width - len(self._admitted))

    @property
    def first_row(self) -> int:
        """The row of the first running sequence."""
        return self._first

    @property
    def running(self) -> list[Sequence]:
        """The sequences of the decode batch, by row from ``first_row`` on."""
        window = self._rows[self._first : self._first + self._running]
        return [occupant for occupant in window if isinstance(occupant, Sequence)]

    @property
    def held_tokens(self) -> int:
        """Tokens whose keys and values are in memory, cached prompts included."""
        return sum(each.length for each in self._admitted) + sum(each.length for each in self._cached)

    def can_hold(self, sequences: int, tokens: int) -> bool:
        """Return whether ``sequences`` may ever hold ``tokens`` each at the same time."""
        return sequences <= len(self._rows) and (sequences - 1) * self._blocks(tokens) <= self._shared_tokens

    def admit(self, sequence: Sequence, tokens: int) -> bool:
        """Give ``sequence`` a row and memory for ``tokens``; False when there is no room now.

        What the cache holds of its prompt is its at once. Where another sequence is still computing
        more of it, ``sequence.awaits`` says which.
        """
        if not self.free:
            return False
        donor, shared, awaited = self._find_prefix(sequence)
        if isinstance(donor, CachedPrefix):
            donor.used = next(self._uses)  # the last one to go when memory is needed
        if not self.grant(sequence, tokens):
            return False
        if isinstance(donor, CachedPrefix) and donor not in self._cached:
            donor, shared = None, 0
        if isinstance(donor, CachedPrefix) and donor.length - shared < TAKEN_OVER_BELOW:
            self._forget(donor, clear=False)
            if not self._admitted:
                self._open_window(donor.row)
            self._place(sequence, donor.row)
            self._cache.trim(donor.row, shared, donor.length)
        else:
            if not self._admitted:
                self._open_window(None)
            row = self._free_row()
            if donor is not None and donor.row == row:  # it was the one to make room
                donor, shared = None, 0
            self._place(sequence, row)
            if donor is not None:
                self._cache.copy(donor.row, row, shared)
        sequence.length = shared
        sequence.awaits = awaited
        self.prompt_tokens += sequence.prompt.size
        self.reused_tokens += shared
        return True

    def admit_group(self, sequences: list[Sequence], tokens: int) -> bool:
        """Give all of a group's ``sequences`` rows and memory for ``tokens`` each, or none of them anything.

        The first one has what others computed of its prompt, as any; the others wait for it. A group
        wider than the window has the table to itself.
        """
        if self._admitted and len(self._admitted) + len(sequences) > self._width:
            return False
        beside_the_oldest = len(sequences) if self._admitted else len(sequences) - 1
        wanted = self._others_granted() + beside_the_oldest * self._blocks(tokens)
        if wanted > self._shared_tokens:
            return False
        if not self._admitted:
            self._open_window(0 if len(sequences) > self._width else None)
        first = sequences[0]
        for sequence in sequences:
            self.grant(sequence, tokens)
            self._place(sequence, self._free_row())
            sequence.awaits = first
        donor, shared, first.awaits = self._find_prefix(first)
        if donor is not None:
            self._cache.copy(donor.row, first.row, shared)
            first.length = shared
        self.prompt_tokens += first.prompt.size
        self.reused_tokens += shared
        return True

    def share(self, sequence: Sequence) -> bool:
        """Give a sequence that awaited another's prompt what it may have of it; False to wait on."""
        awaited = sequence.awaits
        if awaited is None:
            return True
        if awaited.row >= 0 and not awaited.prefilled:
            wanted = shared_tokens(sequence.prompt, awaited.prompt)
            if awaited.computed < wanted:
                return False
        sequence.awaits = None
        donor, shared, awaited = self._find_prefix(sequence)
        if donor is not None and shared > sequence.length:
            self._cache.copy(donor.row, sequence.row, shared)
            self.reused_tokens += shared - sequence.length
            sequence.length = shared
        # Where the awaited one was cancelled, another goes on for all.
        sequence.awaits = awaited
        return awaited is None

    def grant(self, sequence: Sequence, tokens: int) -> bool:
        """Make sure that ``sequence`` may hold ``tokens``; False when the memory is taken."""
        if tokens <= sequence.granted:
            return True
        wanted = self._blocks(tokens)
        if self._admitted and self._admitted[0] is not sequence:
            others = self._others_granted(sequence)
            if others + wanted > self._shared_tokens:
                return False
            self._shrink_cached(self._shared_tokens - others - wanted)
        sequence.granted = wanted
        return True

    def start(self, sequence: Sequence) -> None:
        """Make ``sequence`` the last row of the decode batch."""
        target = self._first + self._running
        occupant = self._rows[target]
        if occupant is not sequence:
            free = self._last_free()
            if occupant is None:
                self._move(sequence, target)
            elif free is not None:
                self._move(occupant, free)
                self._move(sequence, target)
            elif isinstance(occupant, CachedPrefix):
                self._forget(occupant)
                self._move(sequence, target)
            else:
                self._swap(sequence, occupant)
        self._running += 1

    def pause(self, sequence: Sequence) -> None:
        """Take ``sequence`` out of the decode batch; it keeps its memory."""
        self._running -= 1
        last = self._rows[self._first + self._running]
        if not isinstance(last, Sequence) or last is sequence:
            return
        free = self._last_free()
        if free is None:
            self._swap(sequence, last)
        else:
            hole = sequence.row
            self._move(sequence, free)
            self._move(last, hole)

    def release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Free the row and the memory of ``sequence``; ``keep`` leaves its prompt for others.

        Of several that end together the last rows should go first: they need not be moved.
        """
        hole = sequence.row
        self._admitted.remove(sequence)
        self._rows[hole] = None
        was_running = self._first <= hole < self._first + self._running
        computed = sequence.computed
        kept = keep and computed >= LEAST_SHARED_TOKENS and self._is_new(sequence)
        last = None
        if was_running:
            self._running -= 1
            if hole == self._first and self._running and hole + self._width < len(self._rows):
                self._first += 1  # the window moves on, and nobody's contents have to
            else:
                last = self._rows[self._first + self._running]
        place = hole
        if kept and last is not None:  # its row is needed
            free = self._last_free()
            kept, place = free is not None, hole if free is None else free
            if free is not None:
                self._cache.copy(hole, free, computed)
        if kept:
            if place == hole:
                self._cache.trim(hole, computed, sequence.length)
            tokens = sequence.prompt[:computed]
            cached = CachedPrefix(place, tokens, sequence.request.cache_scope, next(self._uses))
            self._rows[place] = cached
            self._cached.append(cached)
        if not kept or place != hole:
            self._cache.clear(hole)
        sequence.row, sequence.granted = -1, 0
        if last is not None:
            self._move(last, hole)
        self._shrink_cached(min(self._cached_tokens, self._shared_tokens - self._others_granted()))

    def reset(self) -> None:
        """Take everything from everybody, whatever state the table is in."""
        for sequence in self._admitted:
            sequence.row, sequence.granted = -1, 0
        self._rows = [None] * len(self._rows)
        self._admitted, self._cached = [], []
        self._first = self._running = 0
        for row in range(len(self._rows)):
            self._cache.clear(row)

    def is_running(self, sequence: Sequence) -> bool:
        """Return whether ``sequence`` is in the decode batch."""
        return self._first <= sequence.row < self._first + self._running

    def _blocks(self, tokens: int) -> int:
        """Return the tokens that are granted for ``tokens``."""
        return min(-(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS, self._context_length)

    def _others_granted(self, sequence: Sequence | None = None) -> int:
        """Return what the sequences beside the oldest may hold, ``sequence`` not counted."""
        return sum(other.granted for other in self._admitted[1:] if other is not sequence)

    def _find_prefix(self, sequence: Sequence) -> tuple[Sequence | CachedPrefix | None, int, Sequence | None]:
        """Return who has most of the sequence's prompt now, how much, and who is computing more of it."""
        if sequence.request.prompt_logprobs is not None:
            return None, 0, None  # every token's logits are wanted
        scope, prompt = sequence.request.cache_scope, sequence.prompt
        donor: Sequence | CachedPrefix | None = None
        most = promised = 0
        awaited: Sequence | None = None
        for cached in self._cached:
            if cached.scope == scope and (shared := shared_tokens(prompt, cached.tokens)) > most:
                donor, most = cached, shared
        for other in self._admitted:
            if other is sequence or other.request.cache_scope != scope or other.awaits is not None:
                continue
            promise = shared_tokens(prompt, other.prompt)
            shared = min(promise, other.computed)
            if shared >= LEAST_SHARED_TOKENS and shared > most:
                donor, most = other, shared
            if not other.prefilled and promise > promised and other.order[0] <= sequence.order[0]:
                awaited, promised = other, promise
        return donor, most, awaited if promised > most else None

    def _is_new(self, sequence: Sequence) -> bool:
        """Drop the cached beginnings of a finished prompt; False when a cached one begins with all of it."""
        tokens = sequence.prompt[: sequence.computed]
        for cached in list(self._cached):
            if cached.scope != sequence.request.cache_scope:
                continue
            common = common_tokens(tokens, cached.tokens)
            if common == tokens.size:
                cached.used = next(self._uses)
                return False
            if common == cached.length:
                self._forget(cached)
        return True

    def _shrink_cached(self, tokens: int) -> None:
        """Forget the cached prompts that were used longest ago until the others fit into ``tokens``."""
        held = sum(self._blocks(cached.length) for cached in self._cached)
        while held > tokens and self._cached:
            oldest = min(self._cached, key=lambda cached: cached.used)
            held -= self._blocks(oldest.length)
            self._forget(oldest)

    def _forget(self, cached: CachedPrefix, *, clear: bool = True) -> None:
        self._cached.remove(cached)
        self._rows[cached.row] = None
        if clear:
            self._cache.clear(cached.row)

    def _open_window(self, row: int | None) -> None:
        """Choose where running sequences go, while there are none: at ``row``, or where no cached prompt is."""
        last = len(self._rows) - self._width
        if row is None:
            starts = range(0, last + 1, self._width)
            row = min(starts, key=lambda start: self._rows[start : start + self._width].count(None) * -1)
        self._first = min(row, last)

    def _place(self, sequence: Sequence, row: int) -> None:
        self._rows[row] = sequence
        sequence.row = row
        self._admitted.append(sequence)

    def _free_row(self) -> int:
        """Return a row for another sequence: the next behind the running ones, so that it need not move."""
        behind = range(self._first + self._running, len(self._rows))
        for row in itertools.chain(behind, range(self._first)):
            if self._rows[row] is None:
                return row
        oldest = min(self._cached, key=lambda cached: cached.used)
        self._forget(oldest)
        return oldest.row

    def _last_free(self) -> int | None:
        """Return a row that is in nobody's way."""
        window = range(self._first, self._first + max(self._width, self._running))
        outside = (row for row in reversed(range(len(self._rows))) if row not in window)
        inside = (row for row in reversed(window[self._running :]) if row < len(self._rows))
        return next((row for row in itertools.chain(outside, inside) if self._rows[row] is None), None)

    def _move(self, occupant: Sequence | CachedPrefix, target: int) -> None:
        source = occupant.row
        self._cache.copy(source, target, occupant.length)
        self._cache.clear(source)
        self._rows[source], self._rows[target] = None, occupant
        occupant.row = target

    def _swap(self, one: Sequence, other: Sequence) -> None:
        self._cache.swap(one.row, other.row, one.length, other.length)
        one.row, other.row = other.row, one.row
        self._rows[one.row], self._rows[other.row] = one, other
