"""The small chat model, loaded once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.engines.cores import Cores
from appliance.engines.generation.answers import joined
from appliance.engines.generation.constraints.compiler import ConstraintCompiler
from appliance.engines.generation.contract import Answer, Generation, GenerationRequest, Sampling
from appliance.engines.generation.engine import GenerationEngine, GenerationOptions
from appliance.engines.generation.scheduling.kv_cache import bytes_per_token
from appliance.packs.manifest import Decoder, Manifest, read_manifest
from tests.packs_fixture import built_pack

GREEDY = Sampling(temperature=0.0)
CACHE_BYTES = 1 << 30


@pytest.fixture(scope="session")
def pack() -> Path:
    return built_pack("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def manifest(pack: Path) -> Manifest:
    return read_manifest(pack)


@pytest.fixture(scope="session")
def decoder(manifest: Manifest) -> Decoder:
    assert manifest.decoder is not None
    return manifest.decoder


@pytest.fixture(scope="session")
def cores() -> Cores:
    return Cores(2)


@pytest.fixture(scope="session")
def engine(pack: Path, manifest: Manifest, cores: Cores) -> Iterator[GenerationEngine]:
    with opened(pack, manifest, cores) as engine:
        yield engine


@contextlib.contextmanager
def opened(
    pack: Path,
    manifest: Manifest,
    cores: Cores,
    *,
    context_length: int | None = None,
    budget: int | None = None,
    **options: Any,
) -> Iterator[GenerationEngine]:
    """An engine of its own, with another context, a budget in tokens, or other options."""
    decoder = manifest.decoder
    assert decoder is not None
    options = {"kv_cache_bytes": CACHE_BYTES, "max_queue": 32, **options}
    if context_length is not None:
        manifest = msgspec.structs.replace(manifest, context_length=context_length)
    if budget is not None:
        options["kv_cache_bytes"] = budget * token_bytes(decoder)
    with mock.patch.object(ConstraintCompiler, "warm"):  # it takes seconds that few tests need
        engine = GenerationEngine(pack, manifest, cores, GenerationOptions(**options))
    try:
        yield engine
    finally:
        engine.close()


def token_bytes(decoder: Decoder | None) -> int:
    """Bytes of one token in the KV cache."""
    assert decoder is not None
    return bytes_per_token(layers=decoder.layers, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim)


class Plain:
    """The graph of a pack at batch 1 with plain arrays: no engine, no cache that is shared, no chunks."""

    def __init__(self, pack: Path, decoder: Decoder, cores: Cores) -> None:
        self._session = cores.session(pack / decoder.graph)
        self._shape = (decoder.kv_heads, decoder.head_dim)
        self._names = [f"{side}.{layer}" for layer in range(decoder.layers) for side in "kv"]

    def logits(self, ids: list[int]) -> NDArray[np.float64]:
        """Run all ``ids`` at once; return the logits [len(ids), vocab_size] after each."""
        return self.steps(len(ids))(ids, list(range(len(ids))))

    def steps(self, capacity: int) -> Callable[[list[int], list[int]], NDArray[np.float64]]:
        """Return a function that appends tokens to a sequence of its own, and gives the logits after some."""
        kv_heads, head_dim = self._shape
        cache = [np.zeros((1, kv_heads, capacity, head_dim), np.float32) for _ in self._names]
        length = 0

        def append(ids: list[int], wanted: list[int]) -> NDArray[np.float64]:
            nonlocal cache, length
            length += len(ids)
            inputs = {f"past_{name}": tensor for name, tensor in zip(self._names, cache, strict=True)}
            inputs["input_ids"] = np.array([ids], np.int64)
            inputs["seqlens_k"] = np.array([length - 1], np.int32)
            inputs["total_sequence_length"] = np.array([length], np.int32)
            inputs["out_index"] = np.array(wanted, np.int64)
            outputs = ["logits", *(f"present_{name}" for name in self._names)]
            logits, *cache = self._session.run(outputs, inputs)
            return np.asarray(logits, np.float64)

        return append

    def generate(
        self, prompt: list[int], count: int, choose: Choose
    ) -> tuple[list[int], list[NDArray[np.float64]]]:
        """Produce ``count`` tokens as ``choose`` says, which changes logits in place; return those too."""
        append = self.steps(len(prompt) + count)
        produced: list[int] = []
        seen: list[NDArray[np.float64]] = []
        fed = prompt
        for _ in range(count):
            logits = append(fed, [len(fed) - 1])[0]
            fed = [choose(logits, produced)]
            produced += fed
            seen.append(logits)
        return produced, seen


Choose = Callable[[NDArray[np.float64], list[int]], int]


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log probabilities of the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@pytest.fixture(scope="session")
def plain(pack: Path, decoder: Decoder, cores: Cores) -> Plain:
    return Plain(pack, decoder, cores)


def request(prompt: list[int], max_tokens: int, **fields: Any) -> GenerationRequest:
    """A request, greedy unless told otherwise."""
    fields = {"sampling": GREEDY, "cache_scope": "test", **fields}
    return GenerationRequest(prompt=prompt, max_tokens=max_tokens, **fields)


def ask(engine: GenerationEngine, prompt: list[int], max_tokens: int, **fields: Any) -> Generation:
    """Submit a request, greedy unless told otherwise."""
    return engine.submit(request(prompt, max_tokens, **fields))


async def text_ids(engine: GenerationEngine, text: str) -> list[int]:
    """The token ids of a text alone."""
    return await engine.encode(text, add_special_tokens=False)


async def answer(stream: Generation) -> Answer:
    """Read a stream to its end, and look at how its deltas are cut."""
    deltas = [delta async for delta in stream]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert [delta.prompt_logprobs for delta in deltas[1:]] == [None] * (len(deltas) - 1)
    whole = joined(deltas)
    assert stream.completion_tokens == len(whole.token_ids)
    assert len(whole.logprobs) in (0, len(whole.token_ids))
    return whole


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the engine's thread has come so far."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the thread has no event to wait for
            await asyncio.sleep(0.005)
