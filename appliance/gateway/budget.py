"""Budgets: what is asked for is reserved before the work, what it cost is taken after it.

The store has the budget as of the last batch of usage records; what has been spent since, and what running
requests may still spend, is held here. Amounts are millionths of the currency.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from appliance.gateway.errors import InsufficientBudgetError

log = logging.getLogger(__name__)

MILLION = 1_000_000
# The most that one request costs, a billion of the currency: sums of absurd prices still fit the store.
MOST_COST = 10**15


def token_cost(prompt_price: float, completion_price: float, prompt: int, completion: int) -> int:
    """Return what tokens cost at prices per million tokens, rounded to a millionth.

    More tokens never cost less: what is reserved for the most that a request may use covers what it did use.
    """
    # Calculated and rounded as OpenGateLLM does it: in the currency, to six decimals.
    cost = round(prompt / MILLION * prompt_price + completion / MILLION * completion_price, 6)
    return round(max(0.0, min(cost * MILLION, MOST_COST)))


class Reservation:
    """A part of a user's budget that nobody else may spend."""

    __slots__ = ("amount", "user_id")

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.amount = 0


class Ledger:
    """What is held of every user's budget. Used on the event loop only."""

    def __init__(self) -> None:
        # Reserved by running requests, or spent and not yet in the store; users of whom nothing is held are not in it.
        self._held: Counter[int] = Counter()

    def reserve(
        self,
        reservation: Reservation,
        budget: int,
        prices: tuple[float, float],
        tokens: tuple[int, int],
        sequences: int,
    ) -> int:
        """Reserve for a prompt and ``sequences`` completions, in place of what the reservation had.

        ``budget`` is what the store says now, ``prices`` are those of a million (prompt, completion) tokens,
        ``tokens`` are (the prompt's, those wanted of each completion). Returns how many of the wanted tokens
        the budget affords. Raises InsufficientBudgetError when it does not pay for the prompt and one token.
        """
        self.release(reservation)
        prompt, wanted = tokens
        available = budget - self.held(reservation.user_id)

        def cost(completion: int) -> int:
            return token_cost(*prices, prompt, completion * sequences)

        least = min(wanted, 1)
        if available <= 0 or cost(least) > available:
            raise InsufficientBudgetError
        if cost(wanted) > available:
            wanted = _largest(least, wanted, lambda completion: cost(completion) <= available)
        self._hold(reservation.user_id, cost(wanted))
        reservation.amount = cost(wanted)
        return wanted

    def release(self, reservation: Reservation) -> None:
        """Give back what is reserved."""
        self._hold(reservation.user_id, -reservation.amount)
        reservation.amount = 0

    def spend(self, user_id: int, cost: int) -> None:
        """Hold what was spent until the store has it (``stored``)."""
        self._hold(user_id, cost)

    def stored(self, user_id: int, cost: int) -> None:
        """Let go of what the store's budget no longer has."""
        self._hold(user_id, -cost)

    def held(self, user_id: int) -> int:
        """Return how much of a user's budget in the store is spent already, or reserved."""
        return self._held[user_id]

    def _hold(self, user_id: int, amount: int) -> None:
        held = self._held[user_id] + amount
        if held < 0:
            log.error("%d more was let go of the budget of user %d than was held", -held, user_id)
        if held > 0:
            self._held[user_id] = held
        else:
            self._held.pop(user_id, None)


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number that fits, ``low`` being one that does and ``high`` one that does not."""
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
