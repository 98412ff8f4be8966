"""Budgets: what is asked for is reserved before the work, what it cost is taken after it.

The store has the budget as of the last batch of usage records; what has been spent since, and what running
requests may still spend, is held here. Between the commit of a batch and the moment when the event loop hears of it,
what the batch took is in neither or in both: so batches are numbered, and whoever reads a budget reads the number of
the last batch with it. Amounts are millionths of the currency.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

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


class StoredBudget(NamedTuple):
    """A budget as the store has it, and the number of the last batch that was taken from it."""

    amount: int
    batch: int


class Ledger:
    """What is held of every user's budget. Used on the event loop only."""

    def __init__(self) -> None:
        # Reserved by running requests, or spent and not known to be in the store; users of whom nothing is held are
        # not in it.
        self._held: Counter[int] = Counter()
        # The last number that a batch had, the last that is known to be in the store, and what the batch that is
        # being written takes from each user: it may be in the store by now, or not.
        self._numbered = 0
        self._stored = 0
        self._taken: Mapping[int, int] = {}

    def reserve(
        self,
        reservation: Reservation,
        budget: StoredBudget,
        prices: tuple[float, float],
        tokens: tuple[int, int],
        sequences: int,
    ) -> int:
        """Reserve for a prompt and ``sequences`` completions, in place of what the reservation had.

        ``budget`` is what the store says now: read in the same step of the event loop. ``prices`` are those of a
        million (prompt, completion) tokens, ``tokens`` are (the prompt's, those wanted of each completion). Returns
        how many of the wanted tokens the budget affords. Raises InsufficientBudgetError when it does not pay for the
        prompt and one token.
        """
        self.release(reservation)
        prompt, wanted = tokens
        available = budget.amount - self._held_of(reservation.user_id, budget.batch)

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

    def resume(self, batch: int) -> None:
        """Number batches after the last one that the store has."""
        self._numbered = self._stored = batch

    def write(self, costs: Mapping[int, int]) -> int:
        """Note that a batch is being written which takes ``costs`` by user, and return its number.

        One batch at a time: the next one after ``stored`` or ``refused``. A number is given once, also when the
        store refuses the batch: what is taken with another one later is not taken yet.
        """
        self._numbered += 1
        self._taken = costs
        return self._numbered

    def stored(self) -> None:
        """Let go of what the batch has taken: it is in the store."""
        for user_id, cost in self._taken.items():
            self._hold(user_id, -cost)
        self._stored, self._taken = self._numbered, {}

    def refused(self) -> None:
        """Hold on to what the batch was to take: it is not in the store, and will not be under this number."""
        self._taken = {}

    def held(self, user_id: int) -> int:
        """Return how much of a user's budget is reserved, or spent and not known to be in the store."""
        return self._held[user_id]

    def _held_of(self, user_id: int, batch: int) -> int:
        """Return how much is held of a budget from which the batches up to this number were taken."""
        if batch < self._stored:
            # What was taken since is no longer held: such a budget would be spent twice.
            raise RuntimeError(f"a budget read before batch {self._stored} was stored, of batch {batch}")
        taken = self._taken.get(user_id, 0) if batch >= self._numbered else 0
        return self._held[user_id] - taken

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
