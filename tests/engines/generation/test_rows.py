"""Rows of the KV cache: running ones stay neighbours, contents travel along, memory stays in its budget."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.engines.generation.contract import GenerationRequest
from appliance.engines.generation.kv_cache import KvCache, bytes_per_token
from appliance.engines.generation.rows import BLOCK_TOKENS, RowTable
from appliance.engines.generation.sequence import Sequence

CONTEXT = 2 * BLOCK_TOKENS
BUDGET = 4 * BLOCK_TOKENS + 10


class _Placed(Sequence):
    """A sequence with nothing but its place: the table asks for no more."""

    def __init__(self, mark: int) -> None:
        self.mark = mark
        self.request = GenerationRequest(prompt=[0], max_tokens=1, cache_scope="test")
        self.row = -1
        self.length = 0
        self.granted = 0


class Rows(RuleBasedStateMachine):
    """Whatever is admitted, started, grown, paused and released, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(layers=1, kv_heads=2, head_dim=16, rows=4, context_length=CONTEXT)
        self.table = RowTable(self.cache, context_length=CONTEXT, budget_tokens=BUDGET)
        self.marks = 0

    def write(self, sequence: _Placed, tokens: int) -> None:
        for tensor in self.cache.tensors:
            tensor[sequence.row, :, sequence.length : sequence.length + tokens] = sequence.mark
        sequence.length += tokens

    @rule(tokens=st.integers(1, CONTEXT))
    def admit(self, tokens: int) -> None:
        self.marks += 1
        sequence = _Placed(self.marks)
        alone = not self.table.admitted
        if self.table.admit(sequence, tokens):
            self.write(sequence, tokens)
        else:
            assert not alone
            assert sequence.row == -1

    @precondition(lambda self: self.idle())
    @rule(choice=st.integers(0, 3))
    def start(self, choice: int) -> None:
        idle = self.idle()
        self.table.start(idle[choice % len(idle)])

    @precondition(lambda self: self.table.running)
    @rule(choice=st.integers(0, 3))
    def pause(self, choice: int) -> None:
        running = self.table.running
        self.table.pause(running[choice % len(running)])

    @precondition(lambda self: self.table.admitted)
    @rule(choice=st.integers(0, 3))
    def release(self, choice: int) -> None:
        admitted = self.table.admitted
        row = (sequence := admitted[choice % len(admitted)]).row
        self.table.release(sequence)
        assert sequence.row == -1
        assert row >= 0

    @precondition(lambda self: self.table.admitted)
    @rule(choice=st.integers(0, 3), tokens=st.integers(1, BLOCK_TOKENS))
    def grow(self, choice: int, tokens: int) -> None:
        admitted = self.table.admitted
        sequence = admitted[choice % len(admitted)]
        tokens = min(tokens, CONTEXT - sequence.length)
        granted = self.table.grant(sequence, sequence.length + tokens)
        assert granted or sequence is not admitted[0]  # the oldest never waits
        if granted:
            assert isinstance(sequence, _Placed)
            self.write(sequence, tokens)

    def idle(self) -> list[Sequence]:
        return [sequence for sequence in self.table.admitted if not self.table.is_running(sequence)]

    @rule()
    def reset(self) -> None:
        admitted = self.table.admitted
        self.table.reset()
        assert self.table.free == self.cache.rows
        assert all(sequence.row == -1 for sequence in admitted)

    @invariant()
    def running_rows_are_the_first(self) -> None:
        assert [sequence.row for sequence in self.table.running] == list(range(len(self.table.running)))
        rows = [sequence.row for sequence in self.table.admitted]
        assert len(set(rows)) == len(rows) == self.cache.rows - self.table.free

    @invariant()
    def everybody_keeps_his_memory(self) -> None:
        for sequence in self.table.admitted:
            assert isinstance(sequence, _Placed)
            assert sequence.length <= sequence.granted <= CONTEXT
            for tensor in self.cache.tensors:
                assert (tensor[sequence.row, :, : sequence.length] == sequence.mark).all()

    @invariant()
    def the_budget_holds(self) -> None:
        assert sum(sequence.granted for sequence in self.table.admitted) <= BUDGET

    @invariant()
    def free_rows_hold_nothing(self) -> None:
        taken = {sequence.row for sequence in self.table.admitted}
        for row in set(range(self.cache.rows)) - taken:
            assert not any(tensor[row].any() for tensor in self.cache.tensors)


Rows.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestRows = Rows.TestCase


@given(st.integers(1, 5000), st.sampled_from([16, 64, 80, 96, 128]))
def test_every_row_starts_at_a_page(context_length: int, head_dim: int) -> None:
    cache = KvCache(layers=1, kv_heads=3, head_dim=head_dim, rows=2, context_length=context_length)
    assert cache.capacity >= context_length
    assert cache.row_bytes % 4096 == 0
    assert cache.addresses(1)[0] - cache.addresses(0)[0] == cache.row_bytes
    cache.tensors[1][1] = 7
    cache.clear(0)
    assert (cache.tensors[1][1] == np.float32(7)).all()
    cache.clear(1)
    assert not cache.tensors[1].any()


def test_a_token_of_the_small_chat_model_takes_46080_bytes() -> None:
    assert bytes_per_token(layers=30, kv_heads=3, head_dim=64) == 46_080


def mapping_of(address: int) -> str:
    """What the system says of the mapping that ``address`` is in."""
    entries = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text("ascii"))
    for entry in entries[1:]:
        start, end = (int(each, 16) for each in entry.split()[0].split("-"))
        if start <= address < end:
            return entry
    raise AssertionError("the address is not mapped")


def resident_kib(mapping: str) -> int:
    found = re.search(r"(?m)^Rss: +([0-9]+) kB", mapping)
    assert found is not None
    return int(found[1])


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages here")
def test_the_cache_has_no_huge_pages() -> None:
    cache = KvCache(layers=1, kv_heads=2, head_dim=64, rows=4, context_length=8192)
    for row in range(4):
        mapping = mapping_of(cache.addresses(row)[0])
        assert " nh" in next(line for line in mapping.splitlines() if line.startswith("VmFlags"))


def test_a_swap_takes_no_more_memory_than_the_two_sequences() -> None:
    cache = KvCache(layers=1, kv_heads=2, head_dim=64, rows=2, context_length=8192)
    for tensor in cache.tensors:
        tensor[0, :, :4001] = 1
        tensor[1, :, :20] = 2
    before = [resident_kib(mapping_of(address)) for address in cache.addresses(0)]
    cache.swap(0, 1, 4001, 20)
    assert [resident_kib(mapping_of(address)) for address in cache.addresses(0)] == before
    for tensor in cache.tensors:
        assert (tensor[0, :, :20] == 2).all()
        assert not tensor[0, :, 32:].any()
        assert (tensor[1, :, :4001] == 1).all()
        assert not tensor[1, :, 4001:].any()
