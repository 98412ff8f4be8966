"""Checks of the engines: each opens real packs as the service does and runs them on a small input."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from appliance.config import Settings
from appliance.engines.cores import Cores
from appliance.engines.encoding.embedding import EmbeddingEngine
from appliance.engines.encoding.reranking import RerankEngine
from appliance.engines.generation.contract import GenerationRequest, Sampling
from appliance.engines.generation.engine import GenerationEngine
from appliance.engines.speech.contract import TranscriptionOptions
from appliance.engines.speech.engine import SpeechEngine
from appliance.gateway.engines import close_engine, open_engine
from appliance.packs.manifest import MANIFEST_NAME, Task, read_manifest
from appliance.smoke.registry import Ground, SkippedError, SmokeError

E = TypeVar("E")

CACHE_BYTES = 64 << 20
TOKENS = 4
SECONDS = 1.5
RATE = 22_050  # not the models' own: the audio must be resampled


def runtime(_: Ground) -> str:
    """Load ONNX Runtime, which must have its CPU provider and report to nobody."""
    import onnxruntime

    if "CPUExecutionProvider" not in onnxruntime.get_available_providers():
        raise SmokeError("ONNX Runtime has no CPU provider")
    return f"ONNX Runtime {onnxruntime.__version__}"


def chat(ground: Ground) -> str:
    """Render a conversation, and generate a few tokens greedily."""

    async def use(engine: GenerationEngine) -> str:
        prompt = await engine.chat_prompt([{"role": "user", "content": "Hello"}])
        request = GenerationRequest(
            prompt=prompt,
            max_tokens=TOKENS,
            sampling=Sampling(temperature=0.0),
            ignore_eos=True,
            cache_scope="smoke",
        )
        produced = [token async for delta in engine.submit(request) for token in delta.token_ids]
        if len(produced) != TOKENS:
            raise SmokeError(f"{len(produced)} tokens were produced in place of {TOKENS}")
        return f"{TOKENS} tokens"

    return _every_pack(ground, "chat", GenerationEngine, use)


def embedding(ground: Ground) -> str:
    """Embed two texts; the vectors have length 1."""

    async def use(engine: EmbeddingEngine) -> str:
        vectors = await engine.embed(await engine.tokenize(["a ferry", "a harbour"]))
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3):
            raise SmokeError("the vectors do not have length 1")
        return f"{vectors.shape[1]} dimensions"

    return _every_pack(ground, "embedding", EmbeddingEngine, use)


def rerank(ground: Ground) -> str:
    """Score two documents against a query."""

    async def use(engine: RerankEngine) -> str:
        scores = await engine.score("ferry", ["a ferry", "a harbour"])
        if len(scores.logits) != 2 or not np.isfinite(scores.logits).all():
            raise SmokeError("two documents do not have two scores")
        return "2 scores"

    return _every_pack(ground, "rerank", RerankEngine, use)


def transcription(ground: Ground) -> str:
    """Have the confined worker decode a FLAC file at another rate, and hear it."""
    path = ground.work / "tone.flac"
    _write_tone(path)

    async def use(engine: SpeechEngine) -> str:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # At the highest temperature a poor answer is not tried again.
            heard = engine.transcribe(descriptor, TranscriptionOptions(temperature=1.0))
            segments = [segment async for segment in heard]
        finally:
            os.close(descriptor)
        if abs(heard.duration - SECONDS) > 0.01:
            raise SmokeError(f"{SECONDS} s of audio were heard as {heard.duration} s")
        return f"{heard.duration:.1f} s of FLAC, {len(segments)} segments"

    return _every_pack(ground, "transcription", SpeechEngine, use)


def _write_tone(path: Path) -> None:
    import soundfile

    time = np.arange(int(SECONDS * RATE)) / RATE
    soundfile.write(str(path), 0.3 * np.sin(2 * np.pi * 440 * time), RATE)


def _every_pack(ground: Ground, task: Task, kind: type[E], use: Callable[[E], Awaitable[str]]) -> str:
    """Open every pack of ``task``, one after another, and use it; return what was used and what came out."""
    told = []
    for word, folder in ground.packs:
        for manifest_path in sorted(folder.glob(f"*/{MANIFEST_NAME}")):
            directory = manifest_path.parent
            if read_manifest(directory).task == task:
                outcome = asyncio.run(_use_pack(directory, ground, kind, use))
                told.append(f"{directory.name} ({word}): {outcome}")
    if not told:
        raise SkippedError("there is no such pack here")
    return "; ".join(told)


async def _use_pack(
    directory: Path, ground: Ground, kind: type[E], use: Callable[[E], Awaitable[str]]
) -> str:
    settings = msgspec.structs.replace(
        Settings(),
        data_dir=ground.work,
        kv_cache_bytes=CACHE_BYTES,
        prefix_cache_bytes=0,
        self_benchmark=False,
    )
    engine = await open_engine(directory, read_manifest(directory), Cores(), settings)
    try:
        if not isinstance(engine, kind):
            raise SmokeError(f"{directory.name} is opened by {type(engine).__name__}")
        return await use(engine)
    finally:
        await close_engine(engine)
