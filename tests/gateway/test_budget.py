"""Budgets: whatever happens in whatever order, no more is spent than there was, and nothing stays held."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.gateway.budget import MOST_COST, Ledger, Reservation, StoredBudget, token_cost
from appliance.gateway.errors import InsufficientBudgetError
from appliance.gateway.usage.batch import Batch, last_batch, read_budget
from appliance.storage.migrations import MIGRATIONS, administrator_role, migrate
from appliance.storage.sqlite import sqlite, wrap

USER = 5

prices = st.floats(0, 1e6) | st.sampled_from([0.0, 0.1, 0.5, 1.0, 1e-9, 33.3])
token_counts = st.integers(0, 200_000)


def reserve(
    ledger: Ledger, budget: int, price: tuple[float, float], tokens: tuple[int, int], sequences: int = 1
) -> tuple[Reservation, int]:
    reservation = Reservation(USER)
    return reservation, ledger.reserve(reservation, StoredBudget(budget, 0), price, tokens, sequences)


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

    assert ledger.reserve(reservation, StoredBudget(100, 0), (1.0, 1.0), (60, 40), 1) == 40
    assert ledger.held(USER) == 100

    with pytest.raises(InsufficientBudgetError):
        ledger.reserve(reservation, StoredBudget(100, 0), (1.0, 1.0), (101, 1), 1)
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
    ledger.write({USER: 7})
    with caplog.at_level(logging.ERROR):
        ledger.stored()

    assert ledger.held(USER) == 0
    assert "2 more was let go" in caplog.text


def test_a_budget_from_before_a_batch_that_was_heard_of_is_not_spent_again() -> None:
    ledger = Ledger()
    ledger.spend(USER, 60)
    ledger.write({USER: 60})
    ledger.stored()

    with pytest.raises(RuntimeError, match="before batch 1"):
        reserve(ledger, 100, (1.0, 1.0), (50, 0))


class Spending(RuleBasedStateMachine):
    """Two users whose requests begin, fail and end while batches reach a real store, which the ledger hears of late.

    ``waiting`` is what was spent and is in no batch; ``batch`` is the one on its way to the store, ``outcome`` what
    became of it there and is not heard of yet.
    """

    @initialize(budgets=st.tuples(st.integers(1, 3000), st.integers(0, 3000)))
    def begin(self, budgets: tuple[int, int]) -> None:
        self.store, self.copy = (
            wrap(sqlite.connect(":memory:", isolation_level=None)) for _ in ("store", "backup")
        )
        migrate(self.store, MIGRATIONS)
        role = administrator_role(self.store, now=1)
        self.store.conn.executemany(
            "INSERT INTO users (id, email, role_id, budget, created_at, updated_at) VALUES (?, ?, ?, ?, 1, 1)",
            [(user, f"{user}@example.org", role, budget) for user, budget in enumerate(budgets)],
        )
        self.given = dict(enumerate(budgets))
        self.back_up()
        self.start()

    def start(self) -> None:
        """Begin as a service does, with what the store has."""
        self.ledger = Ledger()
        self.ledger.resume(last_batch(self.store))
        self.running: list[Reservation] = []
        self.waiting: list[tuple[int, int]] = []
        self.batch: Batch | None = None
        self.outcome: str | None = None
        self.spent = Counter({user: budget - self.in_store(user) for user, budget in self.given.items()})

    def in_store(self, user: int) -> int:
        budget = read_budget(self.store, user)
        assert budget is not None
        return budget.amount

    def reserve(
        self,
        reservation: Reservation,
        price: tuple[float, float],
        tokens: tuple[int, int],
        sequences: int = 1,
    ) -> int:
        """Reserve by what the store has now, as a call does."""
        budget = read_budget(self.store, reservation.user_id)
        assert budget is not None
        return self.ledger.reserve(reservation, budget, price, tokens, sequences)

    def left(self, user: int) -> int:
        """Return what a user may spend: what neither is spent nor reserved, and no millionth of it twice."""
        reserved = sum(each.amount for each in self.running if each.user_id == user)
        return self.given[user] - self.spent[user] - reserved

    @rule(
        user=st.integers(0, 1),
        price=st.tuples(*[st.sampled_from([1.0, 2.0, 0.5, 0.0]) | st.floats(0, 5)] * 2),
        prompt=st.integers(0, 100),
        wanted=st.just(5000) | st.integers(0, 500),
        sequences=st.integers(1, 4),
        again=st.booleans(),
    )
    def request(
        self, user: int, price: tuple[float, float], prompt: int, wanted: int, sequences: int, again: bool
    ) -> None:
        reservation = self.running.pop() if again and self.running else Reservation(user)
        user = reservation.user_id
        left = self.left(user)
        least = token_cost(*price, prompt, min(wanted, 1) * sequences)
        try:
            allowed = self.reserve(reservation, price, (prompt, wanted), sequences)
        except InsufficientBudgetError:
            assert left <= 0 or least > left, "refused though it can be paid"
            assert reservation.amount == 0
            return
        assert reservation.amount <= left
        self.running.append(reservation)
        if allowed < wanted:
            assert token_cost(*price, prompt, (allowed + 1) * sequences) > left, "cut though it can be paid"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        reservation = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        cost = data.draw(st.integers(0, reservation.amount))
        self.ledger.release(reservation)
        self.ledger.spend(reservation.user_id, cost)
        self.spent[reservation.user_id] += cost
        self.waiting.append((reservation.user_id, cost))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.ledger.release(self.running.pop(data.draw(st.integers(0, len(self.running) - 1))))

    @precondition(lambda self: self.batch is None and self.waiting)
    @rule(count=st.integers(1, 5))
    def send(self, count: int) -> None:
        sent, self.waiting = self.waiting[:count], self.waiting[count:]
        costs: Counter[int] = Counter()
        for user, cost in sent:
            costs[user] += cost
        self.batch = Batch(self.ledger.write(costs), [], costs, [], 0)

    @precondition(lambda self: self.batch is not None and self.outcome is None)
    @rule(commits=st.booleans())
    def write(self, commits: bool) -> None:
        assert self.batch is not None
        self.store.execute("BEGIN")
        self.batch.write(self.store)
        self.store.execute("COMMIT" if commits else "ROLLBACK")
        self.outcome = "stored" if commits else "refused"

    @precondition(lambda self: self.outcome is not None)
    @rule()
    def hear(self) -> None:
        assert self.batch is not None
        if self.outcome == "stored":
            self.ledger.stored()
        else:
            self.ledger.refused()
            self.waiting = [*self.batch.costs.items(), *self.waiting]
        self.batch = self.outcome = None

    @rule()
    def back_up(self) -> None:
        self.store.conn.backup(self.copy.conn)

    @rule(restored=st.booleans())
    def crash(self, restored: bool) -> None:
        if restored:
            self.copy.conn.backup(self.store.conn)
        self.start()

    @invariant()
    def all_that_is_left_can_be_had_and_no_more(self) -> None:
        for user in getattr(self, "given", {}):
            left, probe = self.left(user), Reservation(user)
            assert left >= 0, "overspent"
            with pytest.raises(InsufficientBudgetError):
                self.reserve(probe, (1.0, 0.0), (left + 1, 0))
            if left:
                self.reserve(probe, (1.0, 0.0), (left, 0))
                self.ledger.release(probe)

    @invariant()
    def the_store_has_what_was_given_without_what_it_was_told_of(self) -> None:
        for user, budget in getattr(self, "given", {}).items():
            told = self.spent[user] - sum(cost for who, cost in self.waiting if who == user)
            if self.batch is not None and self.outcome != "stored":
                told -= self.batch.costs[user]
            assert self.in_store(user) == budget - told

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for reservation in self.running:
            self.ledger.release(reservation)
        while self.batch is not None or self.waiting:
            if self.batch is None:
                self.send(5)
            if self.outcome is None:
                self.write(commits=True)
            self.hear()
        assert not self.ledger._held
        self.store.close()
        self.copy.close()


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
