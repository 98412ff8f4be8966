"""Which engine runs a pack: the one place that knows every engine class."""

from __future__ import annotations

from pathlib import Path

from appliance.config import Settings
from appliance.engines.cores import Cores
from appliance.engines.encoding.embedding import EmbeddingEngine
from appliance.engines.encoding.reranking import RerankEngine
from appliance.engines.generation.engine import GenerationEngine
from appliance.engines.speech.engine import SpeechEngine
from appliance.packs.manifest import Manifest, Task

Engine = GenerationEngine | EmbeddingEngine | RerankEngine | SpeechEngine

# Tasks with an engine; packs of other tasks are installed and not served.
SERVED_TASKS: frozenset[Task] = frozenset({"chat", "embedding", "rerank", "transcription"})


def load_engine(directory: Path, manifest: Manifest, cores: Cores, settings: Settings) -> Engine:
    """Load a pack's model; runs in a thread, takes up to seconds. Raises EngineError or PackError."""
    if manifest.task == "chat":
        return GenerationEngine(
            directory,
            manifest,
            cores,
            kv_cache_bytes=settings.kv_cache_bytes,
            max_queue=settings.generation_queue,
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
