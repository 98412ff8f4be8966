"""Embeddings with the real default model: sense, independence of the batch, order, refusals, cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from tokenizers import Encoding

from appliance.engines.cores import Cores
from appliance.engines.encoding.embedding import EmbeddingEngine
from appliance.engines.encoding.forward import EncoderGraph, Floats, TokenSequence
from appliance.engines.encoding.tokenizer import TextTokenizer
from appliance.engines.errors import EngineError, InputRefusedError
from appliance.errors import OverloadedError
from appliance.packs.errors import PackError
from appliance.packs.manifest import read_manifest
from tests.engines.encoding.waiting import until
from tests.packs_fixture import built_pack

TEXTS = [
    "king",
    "A short note about the weather.",
    "The committee approved the budget for the new library with nine votes in favour. " * 3,
    "Ripe bananas make the best bread, because their sugar has already formed.",
    "Ein Satz auf Deutsch, mit Umlauten: größer, höher, über.",
    "x" * 300,
    "numbers 1 2 3 4 5 6 7 8 9 10 " * 8,
]


async def vectors_of(
    engine: EmbeddingEngine, texts: list[str]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return await engine.embed(await engine.tokenize(texts))


async def test_near_meanings_are_nearer(embedder: EmbeddingEngine) -> None:
    king, queen, banana = await vectors_of(embedder, ["a king", "a queen", "a banana"])
    assert king @ queen > king @ banana + 0.05
    question, answer, other = await vectors_of(
        embedder,
        ["How do I reset my password?", "Steps to recover a forgotten login", "Recipe for lentil soup"],
    )
    assert question @ answer > question @ other + 0.1


async def test_vectors_are_unit_float32_of_the_declared_width(embedder: EmbeddingEngine) -> None:
    vectors = await vectors_of(embedder, TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.dimensions)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


async def test_a_text_has_the_same_vector_alone_and_in_a_batch(embedder: EmbeddingEngine) -> None:
    batched = await vectors_of(embedder, TEXTS)
    for text, vector in zip(TEXTS, batched, strict=True):
        (alone,) = await vectors_of(embedder, [text])
        assert 1 - alone @ vector < 1e-5


async def test_twenty_requests_at_once_get_what_each_gets_alone(embedder: EmbeddingEngine) -> None:
    requests = [[TEXTS[(n + k) % len(TEXTS)] + f" {n}" for k in range(1 + n % 4)] for n in range(20)]
    alone = [await vectors_of(embedder, texts) for texts in requests]
    together = await asyncio.gather(*(vectors_of(embedder, texts) for texts in requests))
    for expected, got in zip(alone, together, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


async def test_token_arrays_are_used_as_given(embedder: EmbeddingEngine) -> None:
    (ids,) = await embedder.tokenize(["a plain sentence"])
    (with_specials,) = await embedder.embed([ids])
    (without,) = await embedder.embed([ids[1:-1]])
    (from_text,) = await vectors_of(embedder, ["a plain sentence"])
    np.testing.assert_allclose(with_specials, from_text, atol=1e-5)
    assert with_specials @ without < 0.999


async def test_the_longest_input_fits_and_one_more_token_is_refused(embedder: EmbeddingEngine) -> None:
    assert (await embedder.embed([[2000] * embedder.context_length])).shape == (1, embedder.dimensions)
    with pytest.raises(InputRefusedError) as refused:
        await embedder.embed([[2000], [2000] * (embedder.context_length + 1)])
    assert refused.value.message == (
        "This model's maximum context length is 512 tokens. However, you requested 513 tokens in the input "
        "for embedding generation. Please reduce the length of the input."
    )
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")


@pytest.mark.parametrize("strange", [-1, 30522, 10**9, 2**70])
async def test_a_token_outside_the_vocabulary_is_refused(embedder: EmbeddingEngine, strange: int) -> None:
    with pytest.raises(InputRefusedError, match=f"Token id {strange} is out of vocabulary"):
        await embedder.embed([[101, strange, 102]])
    assert embedder.vocab_size == 30522


@pytest.mark.parametrize("inputs", [[], [[]], [[101], []]])
async def test_nothing_to_embed_is_refused(embedder: EmbeddingEngine, inputs: list[list[int]]) -> None:
    with pytest.raises(InputRefusedError):
        await embedder.embed(inputs)


async def test_a_cancelled_request_leaves_no_work_behind(cores: Cores) -> None:
    pack = built_pack("bge-small-en-v1.5")
    engine = EmbeddingEngine(pack, read_manifest(pack), cores)
    try:
        with cores.lease():  # nothing can run yet
            waiting = asyncio.create_task(engine.embed([[2000] * 512] * 64))
            await until(lambda: engine.queued_tokens > 0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert engine.queued_tokens == 0
        assert (await engine.embed([[101, 2000, 102]])).shape == (1, 384)
    finally:
        await asyncio.to_thread(engine.close)


async def test_a_full_queue_refuses_but_a_large_request_alone_is_served(cores: Cores) -> None:
    pack = built_pack("bge-small-en-v1.5")
    engine = EmbeddingEngine(pack, read_manifest(pack), cores, max_queue_tokens=100)
    try:
        with cores.lease():
            large = asyncio.create_task(engine.embed([[2000] * 100] * 3))
            await until(lambda: engine.queued_tokens > 0)
            with pytest.raises(OverloadedError) as overloaded:
                await engine.embed([[101, 2000, 102]])
            assert (overloaded.value.status, overloaded.value.retry_after) == (503, 5)
        assert (await large).shape == (3, 384)
    finally:
        await asyncio.to_thread(engine.close)


async def test_closing_fails_what_waits_and_refuses_what_comes(cores: Cores) -> None:
    pack = built_pack("bge-small-en-v1.5")
    engine = EmbeddingEngine(pack, read_manifest(pack), cores)
    with cores.lease():
        waiting = asyncio.create_task(engine.embed([[2000] * 512] * 8))
        await until(lambda: engine.queued_tokens > 0)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        with pytest.raises(EngineError):
            await waiting
    await closing
    with pytest.raises(EngineError):
        await engine.embed([[101, 102]])
    with pytest.raises(EngineError):
        await engine.tokenize(["late"])


async def test_long_texts_are_tokenised_whole_and_off_the_loop(
    embedder: EmbeddingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    encode = TextTokenizer.encode

    def noted(self: TextTokenizer, texts: list[str], **options: bool) -> Iterator[Encoding]:
        threads.add(threading.get_ident())
        return encode(self, texts, **options)

    monkeypatch.setattr(TextTokenizer, "encode", noted)
    (ids,) = await embedder.tokenize(["word " * 50_000])
    assert len(ids) == 50_002
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("fault", ["one vector for two", "not numbers", "an exception"])
def test_a_graph_that_cannot_run_a_batch_is_refused_at_once(
    cores: Cores, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(_: EncoderGraph, batch: list[TokenSequence]) -> Floats:
        if fault == "an exception":
            raise ValueError(fault)
        return (
            np.full((len(batch), 384), np.nan, np.float32)
            if fault == "not numbers"
            else np.ones((1, 384), np.float32)
        )

    monkeypatch.setattr(EncoderGraph, "vectors", broken)
    pack = built_pack("bge-small-en-v1.5")
    with pytest.raises(PackError):
        EmbeddingEngine(pack, read_manifest(pack), cores)


def test_a_pack_of_another_task_is_refused(cores: Cores) -> None:
    pack = built_pack("ms-marco-minilm-l-12-v2")
    with pytest.raises(PackError, match="not an embedding pack"):
        EmbeddingEngine(pack, read_manifest(pack), cores)
