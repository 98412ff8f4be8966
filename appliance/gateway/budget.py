"""Budgets: what is asked for is reserved before the work, what it cost is taken after it.

The store has the budget as of the last batch of usage records; what has been spent since, and what running
requests may still spend, is held here. Amounts are millionths of the currency.
"""

from __future__ import annotations

import math
from collections import Counter

from appliance.gateway.errors import InsufficientBudgetError


def token_cost(prompt_price: float, completion_price: float, prompt: int, completion: int) -> int:
    """Return what tokens cost at prices per million tokens, rounded to a millionth."""
    return round(prompt * prompt_price + completion * completion_price)


class Reservation:
    """A part of a user's budget that nobody else may spend."""

    __slots__ = ("amount", "user_id")

    def __init__(self, user_id: int) -> None:
        self.user_id = user_id
        self.amount = 0


class Ledger:
    """What is held of every user's budget. Used on the event loop only."""

    def __init__(self) -> None:
        # Reserved by running requests, or spent and not yet in the store.
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
        prompt_price, completion_price = prices
        prompt, wanted = tokens
        available = budget - self._held[reservation.user_id]
        left = available - prompt * prompt_price
        if available <= 0 or left < 0:
            raise InsufficientBudgetError
        if completion_price > 0 and wanted > 0:
            wanted = min(wanted, math.floor(left / completion_price) // sequences)
            if wanted < 1:
                raise InsufficientBudgetError
        amount = math.ceil(prompt * prompt_price + wanted * sequences * completion_price)
        reservation.amount = min(amount, available)
        self._held[reservation.user_id] += reservation.amount
        return wanted

    def release(self, reservation: Reservation) -> None:
        """Give back what is reserved."""
        self._let_go(reservation.user_id, reservation.amount)
        reservation.amount = 0

    def spend(self, user_id: int, cost: int) -> None:
        """Hold what was spent until the store has it (``stored``)."""
        self._held[user_id] += cost

    def stored(self, user_id: int, cost: int) -> None:
        """Let go of what the store's budget no longer has."""
        self._let_go(user_id, cost)

    def _let_go(self, user_id: int, amount: int) -> None:
        self._held[user_id] -= amount
        if self._held[user_id] <= 0:
            del self._held[user_id]
