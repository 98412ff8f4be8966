"""The small chat model, loaded once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.engines.cores import Cores
from appliance.engines.generation.answers import joined
from appliance.engines.generation.contract import Answer, GenerationRequest, Sampling
from appliance.engines.generation.delivery import TokenStream
from appliance.engines.generation.engine import GenerationEngine, GenerationOptions
from appliance.engines.generation.kv_cache import bytes_per_token
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
    engine = GenerationEngine(pack, manifest, cores, GenerationOptions(**options))
    try:
        yield engine
    finally:
        engine.close()


def token_bytes(decoder: Decoder) -> int:
    """Bytes of one token in the KV cache."""
    return bytes_per_token(layers=decoder.layers, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim)


def request(prompt: list[int], max_tokens: int, **fields: Any) -> GenerationRequest:
    """A request, greedy unless told otherwise."""
    fields = {"sampling": GREEDY, "cache_scope": "test", **fields}
    return GenerationRequest(prompt=prompt, max_tokens=max_tokens, **fields)


def ask(engine: GenerationEngine, prompt: list[int], max_tokens: int, **fields: Any) -> TokenStream:
    """Submit a request, greedy unless told otherwise."""
    return engine.submit(request(prompt, max_tokens, **fields))


async def answer(stream: TokenStream) -> Answer:
    """Read a stream to its end, and look at how its deltas are cut."""
    deltas = [delta async for delta in stream]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert [delta.prompt_logprobs for delta in deltas[1:]] == [None] * (len(deltas) - 1)
    whole = joined(deltas)
    assert stream.completion_tokens == len(whole.token_ids)
    assert len(whole.logprobs) in (0, len(whole.token_ids))
    return whole
