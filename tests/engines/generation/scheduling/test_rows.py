"""Rows of the KV cache: running ones stay neighbours, contents travel along, memory stays in its budget."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from appliance.engines.generation.contract import GenerationRequest
from appliance.engines.generation.scheduling import rows as rows_module
from appliance.engines.generation.scheduling.kv_cache import KvCache, bytes_per_token
from appliance.engines.generation.scheduling.prefixes import LEAST_SHARED_TOKENS, CachedPrefix
from appliance.engines.generation.scheduling.rows import RowTable
from appliance.engines.generation.scheduling.sequence import Sequence

BLOCK = 16
CONTEXT = 6 * BLOCK
BUDGET = 14 * BLOCK + 10
CACHED = 5 * BLOCK
WIDTH = 3
ROWS = 7
# Prompts begin alike, with one of these, for some length; then each goes its own way.
STEMS = [[seed * 7919 + place for place in range(CONTEXT)] for seed in (1, 2)]


class _Placed(Sequence):
    """A sequence with nothing but its prompt and its place: the table asks for no more."""

    def __init__(self, mark: int, prompt: list[int], scope: str = "a", **fields: int) -> None:
        self.mark = mark
        self.request = GenerationRequest(prompt=prompt, max_tokens=1, cache_scope=scope, **fields)  # type: ignore[arg-type]
        self.prompt = np.array(prompt, np.int64)
        self.order = (0, mark)
        self.row = -1
        self.length = 0
        self.granted = 0
        self.awaits = None
        self.leader = None

    def expected(self) -> NDArray[np.float32]:
        """What its row must hold."""
        produced = max(0, self.length - self.prompt.size)
        known = contents(self.request.cache_scope, self.prompt)[: self.computed]
        return np.concatenate([known, np.full(produced, -self.mark, np.float32)])


def contents(scope: str, prompt: NDArray[np.int64]) -> NDArray[np.float32]:
    """Keys and values as a model makes them: those of a token depend on it and on all before it.

    Those of two scopes differ here, so that one found in the other is seen.
    """
    value, values = ord(scope), []
    for token_id in prompt.tolist():
        value = (value * 31 + token_id + 1) % 65_521
        values.append(value + 1)
    return np.array(values, np.float32)


def common(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


PROMPTS = st.builds(
    lambda stem, shared, own, first: [*STEMS[stem][:shared], *(first + place for place in range(own))],
    st.integers(0, 1),
    st.integers(0, CONTEXT - 20),
    st.integers(1, 20),
    st.sampled_from([3, 5]),
)


# Who asks for log probabilities shares with such alone; who asks for the prompt's computes all of it.
KINDS: list[dict[str, int]] = [{}, {}, {"logprobs": 1}, {"prompt_logprobs": 1}]


class Rows(RuleBasedStateMachine):
    """Whatever is admitted, computed, started, grown, paused and released, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(rows_module, "BLOCK_TOKENS", BLOCK)
        self.patches.setattr(rows_module, "TAKEN_OVER_BELOW", 8)
        self.cache = KvCache(layers=1, kv_heads=2, head_dim=16, rows=ROWS, context_length=CONTEXT)
        self.table = RowTable(
            self.cache, width=WIDTH, context_length=CONTEXT, budget_tokens=BUDGET, cached_tokens=CACHED
        )
        self.marks = 0
        self.reused = self.prompt_tokens = 0

    def teardown(self) -> None:
        self.patches.undo()

    def sequence(self, prompt: list[int], scope: str, **fields: int) -> _Placed:
        self.marks += 1
        return _Placed(self.marks, prompt, scope, **fields)

    def write(self, sequence: _Placed, tokens: int) -> None:
        start, sequence.length = sequence.length, sequence.length + tokens
        for tensor in self.cache.tensors:
            tensor[sequence.row, :, start : sequence.length] = sequence.expected()[start:, None]

    def best_known(self, sequence: Sequence) -> int:
        """How much of a prompt anybody of its scope has: every one looked at, token by token."""
        mine, scope = sequence.prompt.tolist(), sequence.request.cache_scope
        known = [each.tokens.tolist() for each in self.table._cached if each.scope == scope]
        known += [
            each.prompt[: each.computed].tolist()
            for each in self.table.admitted
            if each.request.cache_scope == scope and each is not sequence and each.awaits is None
        ]
        counts = [common(mine[:-2], tokens) for tokens in known]
        best = max(counts, default=0)
        return 0 if best < LEAST_SHARED_TOKENS or sequence.request.prompt_logprobs is not None else best

    @rule(prompt=PROMPTS, scope=st.sampled_from("ab"), fields=st.sampled_from(KINDS))
    def admit(self, prompt: list[int], scope: str, fields: dict[str, int]) -> None:
        sequence = self.sequence(prompt, scope, **fields)
        alone, free, known = not self.table.admitted, self.table.free, self.best_known(sequence)
        cached = len(self.table._cached)
        if self.table.admit(sequence, len(prompt)):
            assert free
            assert sequence.length <= known
            if len(self.table._cached) >= cached - (sequence.length > 0):  # else some made room
                assert sequence.length == known
            self.prompt_tokens += len(prompt)
            self.reused += sequence.length
        else:
            assert not alone
            assert (sequence.row, sequence.length) == (-1, 0)

    @rule(prompt=PROMPTS, scope=st.sampled_from("ab"), count=st.integers(1, ROWS))
    def admit_group(self, prompt: list[int], scope: str, count: int) -> None:
        group: list[Sequence] = [self.sequence(prompt, scope) for _ in range(count)]
        for member in group:
            member.leader = group[0]
        alone, held = not self.table.admitted, list(self.table._cached)
        known = self.best_known(group[0])
        tokens = min(len(prompt) + 10, CONTEXT)
        possible = self.table.can_hold(count, tokens)
        if self.table.admit_group(group, tokens):
            assert possible
            assert len(self.table.admitted) <= WIDTH or len(self.table.admitted) == count
            assert group[0].length <= known
            assert [member.awaits for member in group[1:]] == [group[0]] * (count - 1)
            self.prompt_tokens += len(prompt)
            self.reused += group[0].length
        else:
            assert not (alone and possible)
            assert [member.row for member in group] == [-1] * count
            assert self.table._cached == held  # nothing is given up in vain

    @precondition(lambda self: self.unfinished())
    @rule(choice=st.integers(0, ROWS), tokens=st.integers(1, CONTEXT))
    def compute(self, choice: int, tokens: int) -> None:
        """The next piece of a prompt, of one who need not wait for another's."""
        able = []
        for sequence in self.unfinished():
            before = sequence.length
            if self.table.share(sequence):
                able.append(sequence)
            self.reused += sequence.length - before
        assert able  # else all would wait for each other
        sequence = able[choice % len(able)]
        assert isinstance(sequence, _Placed)
        self.write(sequence, min(tokens, sequence.prompt.size - sequence.length))

    @precondition(lambda self: self.idle())
    @rule(choice=st.integers(0, ROWS))
    def start(self, choice: int) -> None:
        idle = self.idle()
        self.table.start(idle[choice % len(idle)])

    @precondition(lambda self: self.table.running)
    @rule(choice=st.integers(0, ROWS))
    def pause(self, choice: int) -> None:
        running = self.table.running
        self.table.pause(running[choice % len(running)])

    @precondition(lambda self: self.table.admitted)
    @rule(choice=st.integers(0, ROWS), keep=st.booleans())
    def release(self, choice: int, keep: bool) -> None:
        admitted = self.table.admitted
        sequence = admitted[choice % len(admitted)]
        known = len(self.table._cached)
        self.table.release(sequence, keep=keep)
        assert (sequence.row, sequence.granted) == (-1, 0)
        assert len(self.table._cached) <= known + keep

    @precondition(lambda self: self.table.running)
    @rule(choice=st.integers(0, ROWS), tokens=st.integers(1, BLOCK))
    def produce(self, choice: int, tokens: int) -> None:
        running = self.table.running
        sequence = running[choice % len(running)]
        tokens = min(tokens, CONTEXT - sequence.length)
        granted = self.table.grant(sequence, sequence.length + tokens)
        assert granted or sequence is not self.table.admitted[0]  # the oldest never waits
        if granted:
            assert isinstance(sequence, _Placed)
            self.write(sequence, tokens)

    def holders(self) -> list[Sequence | CachedPrefix]:
        return [*self.table.admitted, *self.table._cached]

    def unfinished(self) -> list[Sequence]:
        return [sequence for sequence in self.table.admitted if not sequence.prefilled]

    def idle(self) -> list[Sequence]:
        return [
            sequence
            for sequence in self.table.admitted
            if sequence.prefilled and not self.table.is_running(sequence)
        ]

    @rule(often=st.sampled_from([False] * 9 + [True]))
    def reset(self, often: bool) -> None:
        if not often:
            return
        admitted = self.table.admitted
        self.table.reset()
        assert self.table.free == WIDTH
        assert (self.table.held_tokens, self.table.running) == (0, [])
        assert all(sequence.row == -1 for sequence in admitted)

    @invariant()
    def running_rows_are_neighbours(self) -> None:
        first, running = self.table.first_row, self.table.running
        assert [sequence.row for sequence in running] == list(range(first, first + len(running)))
        rows = [each.row for each in self.holders()]
        assert len(set(rows)) == len(rows)
        assert self.table.free == max(0, WIDTH - len(self.table.admitted))

    @invariant()
    def everybody_keeps_his_memory(self) -> None:
        for sequence in self.table.admitted:
            assert isinstance(sequence, _Placed)
            assert sequence.length <= sequence.granted <= CONTEXT
            for tensor in self.cache.tensors:
                assert (tensor[sequence.row, :, : sequence.length] == sequence.expected()[:, None]).all()

    @invariant()
    def cached_prompts_are_what_they_say(self) -> None:
        for cached in self.table._cached:
            assert cached.length >= LEAST_SHARED_TOKENS
            expected = contents(cached.scope, cached.tokens)[:, None]
            for tensor in self.cache.tensors:
                assert (tensor[cached.row, :, : cached.length] == expected).all()

    @invariant()
    def the_budget_holds(self) -> None:
        granted = sum(sequence.granted for sequence in self.table.admitted)
        cached = sum(-(-each.length // BLOCK) * BLOCK for each in self.table._cached)
        assert granted + cached <= BUDGET
        assert cached <= CACHED
        held = [each.length for each in self.holders()]
        assert self.table.held_tokens == sum(held)

    @invariant()
    def free_rows_hold_nothing(self) -> None:
        taken = {each.row for each in self.holders()}
        for row in set(range(ROWS)) - taken:
            assert not any(tensor[row].any() for tensor in self.cache.tensors)

    @invariant()
    def what_was_reused_is_counted(self) -> None:
        assert (self.table.prompt_tokens, self.table.reused_tokens) == (self.prompt_tokens, self.reused)


Rows.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRows = Rows.TestCase


def table(**limits: int) -> RowTable:
    limits = {"width": 3, "context_length": 1024, "budget_tokens": 8192, "cached_tokens": 8192, **limits}
    cache = KvCache(layers=1, kv_heads=1, head_dim=64, rows=ROWS, context_length=limits["context_length"])
    return RowTable(cache, **limits)


def test_a_prompt_that_goes_on_from_a_cached_one_takes_its_row() -> None:
    rows = table()
    first = _Placed(1, list(range(300)))
    assert rows.admit(first, 300)
    row, first.length = first.row, 300
    rows.release(first)
    second = _Placed(2, list(range(400)))
    assert rows.admit(second, 400)
    assert (second.row, second.length, rows.first_row) == (row, 300, row)
    assert rows.held_tokens == 300
    rows.start(second)
    assert second.row == row


def test_a_prompt_that_shares_little_of_a_cached_one_leaves_it_there() -> None:
    rows = table()
    first = _Placed(1, list(range(300)))
    assert rows.admit(first, 300)
    first.length = 300
    rows.release(first)
    second = _Placed(2, [*range(100), *range(500, 600)])
    assert rows.admit(second, 200)
    assert (second.length, rows.held_tokens) == (100, 400)


def test_of_two_prompts_alike_the_second_waits_for_the_first_and_is_next_when_that_ends() -> None:
    rows = table()
    same = [_Placed(mark, list(range(300))) for mark in (1, 2, 3)]
    for sequence in same:
        assert rows.admit(sequence, 300)
    assert [sequence.awaits for sequence in same] == [None, same[0], same[0]]
    same[0].length = 128
    assert [rows.share(sequence) for sequence in same] == [True, False, False]
    rows.release(same[0])  # cancelled half-way: one of the others goes on, and the last waits for that one
    assert [rows.share(sequence) for sequence in same[1:]] == [True, False]
    assert [sequence.length for sequence in same[1:]] == [128, 128]
    same[1].length = 300
    assert rows.share(same[2])
    assert same[2].length == 298


def test_another_s_prompt_is_never_shared() -> None:
    rows = table()
    first, second = _Placed(1, list(range(300))), _Placed(2, list(range(300)), "b")
    assert rows.admit(first, 300)
    first.length = 300
    assert rows.admit(second, 300)
    assert (second.length, second.awaits) == (0, None)
    rows.release(first)
    rows.release(second)
    third = _Placed(3, list(range(300)), "b")
    assert rows.admit(third, 300)
    assert (third.length, rows.reused_tokens) == (0, 0)


def test_the_prompt_used_longest_ago_makes_room() -> None:
    rows = table(budget_tokens=1024 + 512, cached_tokens=512)
    for start in (0, 1000, 0, 2000):
        sequence = _Placed(start, list(range(start, start + 200)))
        assert rows.admit(sequence, 200)
        sequence.length = 200
        rows.release(sequence)
    assert sorted(int(each.tokens[0]) for each in rows._cached) == [0, 2000]


def test_a_group_that_finds_no_room_costs_no_cached_prompt() -> None:
    rows = table(budget_tokens=1024 + 1024)
    cached, running = _Placed(1, list(range(200))), _Placed(2, list(range(500, 800)))
    assert rows.admit(cached, 200)
    cached.length = 200
    rows.release(cached)
    assert rows.admit(running, 300)
    assert not rows.admit_group([_Placed(mark, [1, 2]) for mark in (4, 5)], 600)  # 768 tokens each
    assert rows.held_tokens == 200
    rows.release(running)
    assert rows.admit_group([_Placed(mark, [1, 2]) for mark in (4, 5)], 600)  # alone, one more than shared


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
