"""Prompts whose keys and values are in the cache: which of them a new prompt begins like.

Only what was computed as a prompt is shared. The attention kernel rounds differently for a single
token than for several (measured), so keys and values of produced tokens would make an answer
depend on what ran before; those of a prompt are the same bits however it was cut (measured, but
for pieces that leave one token over: see ``model.piece_of``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int64]

# A shorter common beginning is computed again sooner than its row is looked after.
LEAST_SHARED_TOKENS = 16
# At least this much of a prompt is always computed: its last logits are needed, and two tokens
# give the same bits as many, which one does not.
LEAST_COMPUTED_TOKENS = 2


class CachedPrefix:
    """A finished prompt that stays in ``row``: its ``tokens``, and the ``scope`` that may share them."""

    def __init__(self, row: int, tokens: TokenIds, scope: str, used: int) -> None:
        self.row = row
        self.tokens = tokens
        self.scope = scope
        self.used = used

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self.tokens.size


def common_tokens(one: TokenIds, other: TokenIds) -> int:
    """Return how many tokens two prompts begin with alike."""
    size = min(one.size, other.size)
    if not size or one[0] != other[0]:
        return 0
    different = one[:size] != other[:size]
    first = int(different.argmax())
    return first if different[first] else size


def shared_tokens(prompt: TokenIds, tokens: TokenIds) -> int:
    """Return how much of ``prompt`` need not be computed beside ``tokens``; 0 when it is not worth it."""
    shared = min(common_tokens(prompt, tokens), prompt.size - LEAST_COMPUTED_TOKENS)
    return shared if shared >= LEAST_SHARED_TOKENS else 0
