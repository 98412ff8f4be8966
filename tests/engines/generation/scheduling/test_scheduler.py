"""The scheduler under pressure: limits, cancellation, failures, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from appliance.engines.cores import Cores
from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.generation import engine as engine_module
from appliance.engines.generation.contract import Beams
from appliance.engines.generation.engine import GenerationEngine, GenerationOptions
from appliance.engines.generation.scheduling import rows as rows_module
from appliance.engines.generation.scheduling.delivery import Outbox
from appliance.engines.generation.scheduling.model import DecoderModel
from appliance.engines.generation.scheduling.rows import RowTable
from appliance.errors import OverloadedError
from appliance.packs.errors import PackError
from appliance.packs.manifest import Decoder, Manifest
from tests.engines.generation.conftest import answer, ask, opened, request, token_bytes, until

PROMPT = [504, 2298, 282, 260, 905, 314]  # "The name of the game is": any ids would do
OTHER = [788, 338, 253, 655, 28]


@pytest.fixture
def one_row(
    pack: Path, manifest: Manifest, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GenerationEngine]:
    monkeypatch.setattr(engine_module, "DECODE_ROWS", 1)
    with opened(pack, manifest, cores, context_length=512, budget=512, max_queue=2) as engine:
        yield engine


async def test_the_context_s_end_is_a_length(one_row: GenerationEngine) -> None:
    prompt = PROMPT * 84  # 504 tokens: several chunks, then the last block of memory
    whole = await answer(ask(one_row, prompt, 8))
    assert (len(whole.token_ids), whole.finish_reason) == (8, "length")
    with pytest.raises(InputRefusedError, match="maximum context length is 512 tokens") as refused:
        ask(one_row, prompt, 9)
    assert refused.value.code == "context_length_exceeded"


async def test_a_full_queue_refuses_and_higher_priority_goes_first(one_row: GenerationEngine) -> None:
    running = ask(one_row, PROMPT, 400)
    await anext(running)  # it has the only row now
    low = ask(one_row, PROMPT, 1)
    high = ask(one_row, OTHER, 1, priority=1)
    assert (one_row.queue_depth, one_row.running_rows) == (2, 1)
    with pytest.raises(OverloadedError) as overloaded:
        ask(one_row, PROMPT, 1, priority=2)
    assert overloaded.value.retry_after
    ended: list[str] = []

    async def note(name: str, stream: Any) -> None:
        await answer(stream)
        ended.append(name)

    notes = [asyncio.create_task(note("low", low)), asyncio.create_task(note("high", high))]
    running.cancel()  # frees the row long before its 400 tokens
    await asyncio.gather(*notes)
    assert ended == ["high", "low"]
    assert (one_row.queue_depth, one_row.running_rows) == (0, 0)


async def test_a_cancelled_stream_stops_within_a_step(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    decode = DecoderModel.decode

    def counted(
        self: DecoderModel, first_row: int, last_tokens: list[int], *args: Any, **options: Any
    ) -> Any:
        steps.append(len(last_tokens))
        return decode(self, first_row, last_tokens, *args, **options)

    monkeypatch.setattr(DecoderModel, "decode", counted)
    gone, kept = ask(engine, PROMPT, 400, ignore_eos=True), ask(engine, OTHER, 60, ignore_eos=True)
    await anext(gone)
    await until(lambda: 2 in steps)
    gone.cancel()
    done = len(steps)
    await answer(kept)
    assert steps[done + 2 :] == [1] * (len(steps) - done - 2)  # one may have begun, one was between
    assert all(delta.finish_reason is None for delta in [delta async for delta in gone])
    assert engine.running_rows == 0


async def test_more_sequences_than_rows_come_in_waves_and_let_others_by(
    engine: GenerationEngine, cores: Cores
) -> None:
    ended: list[str] = []

    async def note(name: str, stream: Any) -> list[int]:
        found = await answer(stream)
        ended.append(name)
        return found.token_ids

    with cores.lease():  # nothing runs before both are there
        large = engine.submit_all([request(PROMPT, 8, ignore_eos=True) for _ in range(32)])
        small = ask(engine, OTHER, 4)
    assert engine.queue_depth <= 2
    found = await asyncio.gather(*(note("large", stream) for stream in large), note("small", small))
    assert len({tuple(tokens) for tokens in found[:32]}) == 1
    # Two waves had been admitted at most before it; the other 16 came behind.
    assert ended.index("small") <= 16
    assert (engine.queue_depth, engine.running_rows) == (0, 0)


async def test_a_large_request_counts_as_one_in_the_queue(one_row: GenerationEngine) -> None:
    running = ask(one_row, PROMPT, 400, ignore_eos=True)
    await anext(running)
    many = one_row.submit_all([request(PROMPT, 2) for _ in range(30)])
    assert one_row.queue_depth == 1
    for stream in many[:29]:
        stream.cancel()
    assert one_row.queue_depth == 1
    many[29].cancel()
    assert one_row.queue_depth == 0
    running.cancel()
    assert one_row.submit_all([]) == []


async def test_cancelling_a_waiting_request_frees_its_place(one_row: GenerationEngine) -> None:
    running = ask(one_row, PROMPT, 400)
    await anext(running)
    waiting = [ask(one_row, OTHER, 4), ask(one_row, OTHER, 4)]
    waiting[0].cancel()
    assert [delta async for delta in waiting[0]] == []
    await anext(running)  # a step later its place is free
    await anext(running)
    third = ask(one_row, OTHER, 4)
    running.cancel()
    assert (await answer(waiting[1])).token_ids == (await answer(third)).token_ids


async def test_a_sequence_without_memory_waits_and_goes_on_unchanged(
    pack: Path, manifest: Manifest, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LEAST_CONTEXT_TOKENS", 16)
    monkeypatch.setattr(rows_module, "BLOCK_TOKENS", 16)
    pauses: list[int] = []
    pause = RowTable.pause

    def counted(self: RowTable, sequence: Any) -> None:
        pauses.append(sequence.row)
        pause(self, sequence)

    monkeypatch.setattr(RowTable, "pause", counted)
    prompts = [PROMPT * 2 + OTHER[:count] for count in range(4)]
    # Four blocks beside the oldest: three prompts fit, but not the second block of each.
    with opened(pack, manifest, cores, context_length=48, budget=48 + 64) as engine:
        with cores.lease():  # none ends before all are there
            streams = [ask(engine, prompt, 24) for prompt in prompts]
        together = await asyncio.gather(*map(answer, streams))
        assert pauses
        alone = [await answer(ask(engine, prompt, 24)) for prompt in prompts[-2:]]
        assert engine.running_rows == 0
    assert [each.token_ids for each in together[-2:]] == [each.token_ids for each in alone]


async def test_the_end_of_sequence_ends_the_text(
    pack: Path, manifest: Manifest, decoder: Decoder, cores: Cores, engine: GenerationEngine
) -> None:
    whole = await answer(ask(engine, PROMPT, 6))
    ending = whole.token_ids[3]
    declared = msgspec.structs.replace(decoder, eos_token_ids=[ending])
    with opened(
        pack, msgspec.structs.replace(manifest, decoder=declared), cores, context_length=256, budget=256
    ) as other:
        ended = await answer(ask(other, PROMPT, 6))
    expected = whole.token_ids[: whole.token_ids.index(ending) + 1]
    assert ended.token_ids == expected
    assert ended.text == engine.decode(expected[:-1])
    assert (ended.finish_reason, ended.stop_reason) == ("stop", None)


async def test_a_budget_below_the_context_shortens_it(pack: Path, manifest: Manifest, cores: Cores) -> None:
    with opened(pack, manifest, cores, context_length=8192, budget=300) as engine:
        assert engine.context_length == 300
    with (
        pytest.raises(EngineError, match="at least"),
        opened(pack, manifest, cores, context_length=8192, budget=10),
    ):
        pass


async def test_a_failing_prompt_fails_alone(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await answer(ask(engine, PROMPT, 8))
    prefill = DecoderModel.prefill

    def failing(self: DecoderModel, row: int, ids: Any, start: int, **options: Any) -> Any:
        if ids.tolist() == OTHER:
            raise RuntimeError("broken")
        return prefill(self, row, ids, start, **options)

    monkeypatch.setattr(DecoderModel, "prefill", failing)
    bad, good = ask(engine, OTHER, 8), ask(engine, PROMPT, 8)
    with pytest.raises(EngineError) as failed:
        await answer(bad)
    assert (failed.value.status, "broken" in failed.value.message) == (500, False)
    assert (await answer(good)).token_ids == expected.token_ids
    assert engine.running_rows == 0


async def test_a_failing_decode_leaves_the_engine_alive(
    engine: GenerationEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await answer(ask(engine, PROMPT, 4))
    with monkeypatch.context() as patch:
        patch.setattr(DecoderModel, "decode", lambda *_, **__: np.full((1, 8), np.nan, np.float32))
        with pytest.raises(EngineError, match="not numbers"):
            await answer(ask(engine, PROMPT, 4))
    with monkeypatch.context() as patch:
        patch.setattr(RowTable, "start", lambda *_: 1 / 0)  # a fault of the scheduler itself
        with pytest.raises(EngineError):
            await answer(ask(engine, PROMPT, 4))
    assert (await answer(ask(engine, PROMPT, 4))).token_ids == expected.token_ids


@pytest.mark.parametrize("broken", ["prefill", "decode"])
async def test_what_the_model_failed_on_is_not_kept_for_others(
    pack: Path, manifest: Manifest, cores: Cores, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    whole = getattr(DecoderModel, broken)

    def no_number(self: DecoderModel, *args: Any, **options: Any) -> Any:
        return whole(self, *args, **options) * np.float32(np.nan)

    with opened(pack, manifest, cores, context_length=512) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(DecoderModel, broken, no_number)
            with pytest.raises(EngineError, match="not numbers"):
                await answer(ask(engine, PROMPT * 10, 4))
            with pytest.raises(EngineError, match="not numbers"):
                await engine.search(request(PROMPT * 10, 4), Beams(width=2)).answers()
        await answer(ask(engine, PROMPT, 1))  # too short to be kept
        assert engine.kv_cache_bytes == 0
        await answer(ask(engine, PROMPT * 10, 1))
        await answer(ask(engine, PROMPT, 1))
        assert engine.kv_cache_bytes == 60 * token_bytes(manifest.decoder)


async def test_rows_that_are_free_count_as_places(
    pack: Path, manifest: Manifest, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "DECODE_ROWS", 3)
    with opened(pack, manifest, cores, context_length=512, budget=2048, max_queue=1) as engine:
        # All before the engine's thread has admitted one: this loop is not left, and the cores are taken.
        with cores.lease():
            streams = [ask(engine, PROMPT, 2) for _ in range(4)]
            with pytest.raises(OverloadedError):
                ask(engine, PROMPT, 2)
            streams[3].cancel()
            streams.append(ask(engine, PROMPT, 2))
        del streams[3]
        assert len({tuple((await answer(stream)).token_ids) for stream in streams}) == 1


@pytest.mark.parametrize("broken", [(RowTable, "release"), (Outbox, "flush"), (RowTable, "admit")])
async def test_a_fault_of_the_scheduler_fails_everybody_and_is_over(
    one_row: GenerationEngine, monkeypatch: pytest.MonkeyPatch, broken: tuple[type, str]
) -> None:
    expected = await answer(ask(one_row, PROMPT, 4))
    running, waiting = ask(one_row, PROMPT, 400), ask(one_row, PROMPT, 4)
    await anext(running)
    kind, name = broken
    whole = getattr(kind, name)
    faults: list[str] = []

    def fault(self: Any, *args: Any) -> Any:
        if not faults:
            faults.append(name)
            raise ZeroDivisionError
        return whole(self, *args)

    monkeypatch.setattr(kind, name, fault)
    if name == "release":
        running.cancel()
    else:
        with pytest.raises(EngineError):
            await answer(running)
    with pytest.raises(EngineError):
        await answer(waiting)
    assert (one_row.queue_depth, one_row.running_rows) == (0, 0)
    assert (await answer(ask(one_row, PROMPT, 4))).token_ids == expected.token_ids


async def test_closing_ends_everything(
    pack: Path, manifest: Manifest, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "DECODE_ROWS", 1)
    engine = GenerationEngine(pack, manifest, cores, GenerationOptions(max_queue=4))
    running, waiting = ask(engine, PROMPT, 400), ask(engine, PROMPT, 4)
    await anext(running)
    await asyncio.to_thread(engine.close)
    for stream in (running, waiting):
        with pytest.raises(EngineError):
            await answer(stream)
    with pytest.raises(EngineError):
        ask(engine, PROMPT, 4)


async def test_a_short_prompt_does_not_wait_for_a_long_one_to_end(engine: GenerationEngine) -> None:
    long, short = ask(engine, PROMPT * 200, 1), ask(engine, PROMPT, 1)
    waiting = asyncio.create_task(anext(long))
    await answer(short)
    assert not waiting.done()
    long.cancel()
    with pytest.raises(StopAsyncIteration):
        await waiting


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 29},
        {"kv_heads": 9},
        {"head_dim": 32},
        {"vocab_size": 1000},
        {"graph": "tokenizer.json", "profiles": []},
    ],
)
def test_a_pack_that_is_not_what_it_says_is_refused(
    pack: Path, manifest: Manifest, decoder: Decoder, cores: Cores, wrong: dict[str, Any]
) -> None:
    claimed = msgspec.structs.replace(manifest, decoder=msgspec.structs.replace(decoder, **wrong))
    with pytest.raises(PackError):
        GenerationEngine(pack, claimed, cores, GenerationOptions(max_queue=1))
