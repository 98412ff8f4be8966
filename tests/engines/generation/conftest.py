"""The small chat model, loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.engines.cores import Cores
from appliance.engines.generation.contract import Delta, GenerationRequest, Sampling
from appliance.engines.generation.delivery import TokenStream
from appliance.engines.generation.engine import GenerationEngine
from appliance.packs.manifest import Decoder, Manifest, read_manifest
from tests.packs_fixture import built_pack

GREEDY = Sampling(temperature=0.0)
CACHE_BYTES = 1 << 30


class Answer(msgspec.Struct, frozen=True):
    """A whole answer, put together from its deltas."""

    text: str
    token_ids: list[int]
    last: Delta


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
    engine = GenerationEngine(pack, manifest, cores, kv_cache_bytes=CACHE_BYTES, max_queue=32)
    yield engine
    engine.close()


def ask(engine: GenerationEngine, prompt: list[int], max_tokens: int, **fields: Any) -> TokenStream:
    """Submit a request, greedy unless told otherwise."""
    fields = {"sampling": GREEDY, "cache_scope": "test", **fields}
    return engine.submit(GenerationRequest(prompt=prompt, max_tokens=max_tokens, **fields))


async def answer(stream: TokenStream) -> Answer:
    """Read a stream to its end."""
    deltas = [delta async for delta in stream]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    assert stream.completion_tokens == len(token_ids)
    return Answer("".join(delta.text for delta in deltas), token_ids, deltas[-1])
