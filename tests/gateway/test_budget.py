"""Budgets: whatever happens in whatever order, no more is spent than there was, and nothing stays held."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.gateway.budget import MOST_COST, Ledger, Reservation, token_cost
from appliance.gateway.errors import InsufficientBudgetError

USER = 5

prices = st.floats(0, 1e6) | st.sampled_from([0.0, 0.1, 0.5, 1.0, 1e-9, 33.3])
token_counts = st.integers(0, 200_000)


def reserve(
    ledger: Ledger, budget: int, price: tuple[float, float], tokens: tuple[int, int], sequences: int = 1
) -> tuple[Reservation, int]:
    reservation = Reservation(USER)
    return reservation, ledger.reserve(reservation, budget, price, tokens, sequences)


@pytest.mark.parametrize(
    ("price", "tokens", "cost"),
    [
        ((1.0, 2.0), (10, 20), 50),
        ((0.0, 0.0), (10, 20), 0),
        ((0.1, 0.0), (4, 0), 0),
        ((0.1, 0.0), (6, 0), 1),
        ((1e308, 1e308), (10**9, 10**9), MOST_COST),
        ((1.0, 1.0), (-5, -5), 0),
    ],
)
def test_tokens_cost_what_they_cost_by_the_million(
    price: tuple[float, float], tokens: tuple[int, int], cost: int
) -> None:
    assert token_cost(*price, *tokens) == cost


@given(prices, prices, token_counts, token_counts)
def test_a_cost_is_the_contracts_to_the_sixth_decimal(
    prompt_price: float, completion_price: float, prompt: int, completion: int
) -> None:
    expected = round(prompt / 1e6 * prompt_price + completion / 1e6 * completion_price, 6)
    assert token_cost(prompt_price, completion_price, prompt, completion) / 1e6 == pytest.approx(
        expected, rel=1e-12, abs=1e-12
    )


@given(prices, prices, token_counts, token_counts, token_counts, st.integers(1, 64), st.integers(0, 10**12))
def test_what_a_request_may_use_never_costs_more_than_is_reserved(
    prompt_price: float,
    completion_price: float,
    prompt: int,
    wanted: int,
    used: int,
    sequences: int,
    budget: int,
) -> None:
    ledger = Ledger()
    try:
        reservation, allowed = reserve(
            ledger, budget, (prompt_price, completion_price), (prompt, wanted), sequences
        )
    except InsufficientBudgetError:
        least = token_cost(prompt_price, completion_price, prompt, min(wanted, 1) * sequences)
        assert budget == 0 or least > budget
        assert ledger.held(USER) == 0
        return
    assert min(wanted, 1) <= allowed <= wanted
    cost = token_cost(prompt_price, completion_price, prompt, min(used, allowed * sequences))
    assert cost <= reservation.amount <= budget
    if allowed < wanted:
        more = token_cost(prompt_price, completion_price, prompt, (allowed + 1) * sequences)
        assert more > budget, "no token less than the budget affords"


def test_a_completion_is_cut_to_what_is_left() -> None:
    ledger = Ledger()

    reservation, allowed = reserve(ledger, 100, (1.0, 2.0), (10, 1000))

    assert allowed == 45
    assert reservation.amount == 100


def test_several_sequences_share_what_is_left() -> None:
    assert reserve(Ledger(), 100, (1.0, 2.0), (10, 1000), sequences=4)[1] == 11


@pytest.mark.parametrize("budget", [0, 5, 10, 11])
def test_less_than_the_prompt_and_a_token_is_refused(budget: int) -> None:
    with pytest.raises(InsufficientBudgetError, match=r"^Insufficient budget\.$"):
        reserve(Ledger(), budget, (1.0, 2.0), (10, 1000))


def test_an_empty_budget_pays_for_nothing_that_has_a_price() -> None:
    # Even where the tokens asked for cost nothing.
    with pytest.raises(InsufficientBudgetError):
        reserve(Ledger(), 0, (0.0, 1.0), (10, 0))


def test_a_second_reservation_replaces_the_first() -> None:
    ledger = Ledger()
    reservation, _ = reserve(ledger, 100, (1.0, 1.0), (50, 50))

    assert ledger.reserve(reservation, 100, (1.0, 1.0), (60, 40), 1) == 40
    assert ledger.held(USER) == 100

    with pytest.raises(InsufficientBudgetError):
        ledger.reserve(reservation, 100, (1.0, 1.0), (101, 1), 1)
    assert ledger.held(USER) == 0


def test_releasing_twice_gives_back_once() -> None:
    ledger = Ledger()
    first, _ = reserve(ledger, 100, (1.0, 1.0), (10, 10))
    reserve(ledger, 100, (1.0, 1.0), (10, 10))

    ledger.release(first)
    ledger.release(first)

    assert ledger.held(USER) == 20


def test_letting_go_of_more_than_is_held_is_said_and_changes_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = Ledger()
    ledger.spend(USER, 5)
    with caplog.at_level(logging.ERROR):
        ledger.stored(USER, 7)

    assert ledger.held(USER) == 0
    assert "2 more was let go" in caplog.text


class Spending(RuleBasedStateMachine):
    """Two users whose requests begin, fail, end and reach the store in any order."""

    @initialize(budgets=st.tuples(st.integers(0, 3000), st.integers(0, 3000)))
    def begin(self, budgets: tuple[int, int]) -> None:
        self.ledger = Ledger()
        self.given = dict(enumerate(budgets))
        self.stored_budget = dict(self.given)
        self.settled: Counter[int] = Counter()
        self.running: list[Reservation] = []
        self.written_later: list[tuple[int, int]] = []

    @rule(
        user=st.integers(0, 1),
        prompt_price=st.floats(0, 5),
        completion_price=st.floats(0, 5),
        prompt=st.integers(0, 500),
        wanted=st.integers(0, 500),
        sequences=st.integers(1, 4),
    )
    def request(
        self,
        user: int,
        prompt_price: float,
        completion_price: float,
        prompt: int,
        wanted: int,
        sequences: int,
    ) -> None:
        reservation = Reservation(user)
        try:
            self.ledger.reserve(
                reservation,
                self.stored_budget[user],
                (prompt_price, completion_price),
                (prompt, wanted),
                sequences,
            )
        except InsufficientBudgetError:
            assert reservation.amount == 0
            return
        self.running.append(reservation)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        reservation = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        cost = data.draw(st.integers(0, reservation.amount))
        self.ledger.release(reservation)
        self.ledger.spend(reservation.user_id, cost)
        self.settled[reservation.user_id] += cost
        self.written_later.append((reservation.user_id, cost))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.ledger.release(self.running.pop(data.draw(st.integers(0, len(self.running) - 1))))

    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        batch, self.written_later = self.written_later[:count], self.written_later[count:]
        for user, cost in batch:
            self.stored_budget[user] = max(0, self.stored_budget[user] - cost)
        for user, cost in batch:
            self.ledger.stored(user, cost)

    @invariant()
    def nothing_is_overspent(self) -> None:
        for user, given_budget in getattr(self, "given", {}).items():
            assert self.settled[user] <= given_budget
            assert self.stored_budget[user] == given_budget - (
                self.settled[user] - sum(cost for who, cost in self.written_later if who == user)
            )

    @invariant()
    def what_is_held_is_what_runs_or_is_not_written(self) -> None:
        for user in getattr(self, "given", {}):
            running = sum(each.amount for each in self.running if each.user_id == user)
            unwritten = sum(cost for who, cost in self.written_later if who == user)
            assert self.ledger.held(user) == running + unwritten

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for reservation in self.running:
            self.ledger.release(reservation)
        for user, cost in self.written_later:
            self.ledger.stored(user, cost)
        assert not self.ledger._held


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
