"""Which engine runs a pack: the one place that knows every engine class."""

from __future__ import annotations

import asyncio
from pathlib import Path

from appliance.config import Settings
from appliance.engines.cores import Cores
from appliance.engines.encoding.embedding import EmbeddingEngine
from appliance.engines.encoding.reranking import RerankEngine
from appliance.engines.generation.engine import GenerationEngine, GenerationOptions
from appliance.engines.speech.engine import SpeechEngine
from appliance.packs.manifest import Manifest, Task

Engine = GenerationEngine | EmbeddingEngine | RerankEngine | SpeechEngine

# Tasks with an engine; packs of other tasks are installed and not served.
SERVED_TASKS: frozenset[Task] = frozenset({"chat", "embedding", "rerank", "transcription"})


async def open_engine(directory: Path, manifest: Manifest, cores: Cores, settings: Settings) -> Engine:
    """Load a pack's model, which takes up to seconds. Raises EngineError or PackError."""
    engine = await asyncio.to_thread(_load, directory, manifest, cores, settings)
    if isinstance(engine, SpeechEngine):
        try:
            await engine.start()
            await engine.wait_ready()
        except BaseException:
            await engine.close()  # else its worker would be started again and again
            raise
    return engine


async def close_engine(engine: Engine) -> None:
    """Stop an engine; what it was working on ends with an error."""
    if isinstance(engine, SpeechEngine):
        await engine.close()
    else:
        await asyncio.to_thread(engine.close)


def _load(directory: Path, manifest: Manifest, cores: Cores, settings: Settings) -> Engine:
    if manifest.task == "chat":
        return GenerationEngine(
            directory,
            manifest,
            cores,
            GenerationOptions(
                kv_cache_bytes=settings.kv_cache_bytes,
                prefix_cache_bytes=settings.prefix_cache_bytes,
                max_queue=settings.generation_queue,
                profile=settings.generation_profile,
                tuning_file=settings.tuning_path if settings.self_benchmark else None,
            ),
        )
    if manifest.task == "embedding":
        return EmbeddingEngine(directory, manifest, cores, max_queue_tokens=settings.encoding_queue_tokens)
    if manifest.task == "rerank":
        return RerankEngine(directory, manifest, cores, max_queue_tokens=settings.encoding_queue_tokens)
    return SpeechEngine(
        directory,
        manifest,
        threads=settings.speech_threads or max(1, cores.threads // 2),
        max_queue=settings.speech_queue,
        deadline_seconds=settings.speech_deadline,
    )
