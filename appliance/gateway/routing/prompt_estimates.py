"""How many tokens a provider finds in a prompt, compared with what this box guesses of it.

A model's template adds tokens to every prompt, and its tokenizer cuts texts otherwise: both are learned from what the
provider counts, and budgets are reserved for the most that it may count. What is no text, such as an image, adds
thousands: of prompts that hold some, other things are learned.
"""

from __future__ import annotations

import math
from typing import Literal

# What a prompt is guessed by: by all that is in it, or by the texts beside what is none.
Guess = Literal["texts", "mixed"]

# What a template may add, before the first answer tells.
UNKNOWN_OFFSET = 64
# From this many tokens on, a difference is the tokenizer's; in shorter prompts it is mostly the template's.
LONG = 256
# A tokenizer that finds sixteen times as many counts something else, such as images.
LARGEST_RATIO = 16.0
# No template adds more, nor do the images of a prompt; a larger difference is nonsense.
LARGEST_OFFSET = float(1 << 16)
# What was once seen is forgotten by a sixteenth with each answer that does not show it again.
FORGET = 1 / 16


class PromptEstimate:
    """What is known of one provider: it counts ``ratio`` times the guess, and ``offset`` tokens more."""

    __slots__ = ("_known", "_offset", "_ratio")

    def __init__(self) -> None:
        self._known = False
        self._offset = float(UNKNOWN_OFFSET)
        self._ratio = 1.0

    def most(self, guessed: int) -> int:
        """Return how many tokens a prompt of ``guessed`` tokens may be counted as."""
        return math.ceil(guessed * self._ratio + self._offset)

    def learn(self, guessed: int, counted: int) -> None:
        """Take in what a provider counted: a prompt like it is then expected to be no shorter."""
        if guessed >= LONG:
            seen = min(max(1.0, counted / guessed), LARGEST_RATIO)
            self._ratio = max(seen, self._ratio - FORGET * (self._ratio - seen))
        else:
            more = min(max(0.0, counted - guessed * self._ratio), LARGEST_OFFSET)
            forgotten = FORGET * (self._offset - more) if self._known else math.inf
            self._offset = max(more, self._offset - forgotten)
            self._known = True

    def doubt(self) -> None:
        """Forget some: a prompt was refused that its guess alone would not refuse.

        Else nobody could ask any more what would teach better, after a count that was nonsense.
        """
        self._ratio -= FORGET * (self._ratio - 1.0)
        self._offset -= FORGET * max(0.0, self._offset - UNKNOWN_OFFSET)
