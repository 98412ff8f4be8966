"""Whose turn it is: higher priority first, then arrival; a large request in waves."""

from __future__ import annotations

from typing import cast

from appliance.engines.generation.scheduling.delivery import Receiver
from appliance.engines.generation.scheduling.sequence import Sequence
from appliance.engines.generation.scheduling.waiting import WAVE, Submission, WaitingQueue
from tests.engines.generation.conftest import request


class _Waiting(Sequence):
    """A sequence with nothing but a caller and a priority: the queue asks for no more."""

    def __init__(self, priority: int = 0) -> None:
        self.request = request([1], 1, priority=priority)
        self.receiver = cast("Receiver", _Caller())
        self.row = -1


class _Caller:
    cancelled = False


def submission(count: int = 1, priority: int = 0) -> Submission:
    return Submission([_Waiting(priority) for _ in range(count)])


def queue_of(*submissions: Submission) -> WaitingQueue:
    queue = WaitingQueue()
    for each in submissions:
        queue.push(each)
    return queue


def served(queue: WaitingQueue) -> list[Submission]:
    """Give every sequence a row, one after the other; return whose they were."""
    order: list[Submission] = []
    while (first := queue.first()) is not None:
        order.append(first)
        queue.took(first, 1)
    return order


def test_the_queue_goes_by_priority_then_arrival() -> None:
    low, first, second, high = submission(), submission(priority=1), submission(priority=1), submission(2, 2)
    queue = queue_of(low, first, second, high)
    assert len(queue) == 4
    assert served(queue) == [high, high, first, second, low]
    assert len(queue) == 0


def test_a_large_request_lets_others_by_after_every_wave() -> None:
    large, small = submission(2 * WAVE + 1), submission()
    assert served(queue_of(large, small)) == [large] * WAVE + [small] + [large] * (WAVE + 1)
    two = [submission(WAVE + 1), submission(WAVE + 1)]
    assert served(queue_of(*two)) == [two[0]] * WAVE + [two[1]] * WAVE + two


def test_a_wave_gives_no_place_to_a_lower_priority() -> None:
    large, small = submission(2 * WAVE, priority=1), submission()
    assert served(queue_of(large, small)) == [large] * 2 * WAVE + [small]


def test_who_was_served_leaves_the_queue_though_another_came_first_meanwhile() -> None:
    low = submission()
    queue = queue_of(low)
    high = submission(priority=1)
    queue.push(high)
    queue.took(low, 1)
    assert served(queue) == [high]


def test_only_what_waits_for_a_row_counts() -> None:
    cancelled, placed, waiting = submission(2), submission(2), submission(2)
    queue = queue_of(cancelled, placed, waiting)
    for sequence in cancelled.sequences:
        sequence.receiver.cancelled = True
    for sequence in placed.sequences:
        sequence.row = 3
    waiting.sequences[0].row = 5
    assert len(queue) == 1


def test_the_cancelled_are_forgotten_wherever_they_stand() -> None:
    many, other = submission(4), submission()
    queue = queue_of(many, other)
    gone, kept = many.sequences[0::2], many.sequences[1::2]
    for sequence in (*gone, *other.sequences):
        sequence.receiver.cancelled = True
    queue.forget_cancelled()
    assert queue.clear() == kept
    assert queue.first() is None


def test_whose_turn_it_was_keeps_his_list() -> None:
    members: list[Sequence] = [_Waiting(), _Waiting()]
    each = Submission(members)
    queue = queue_of(each)
    queue.took(each, 2)
    assert (len(members), each.sequences) == (2, [])
