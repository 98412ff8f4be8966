"""Ask the engine about audio that is in memory."""

from __future__ import annotations

import os
import re
import tempfile
from typing import Any

import soundfile
from numpy.typing import NDArray

from appliance.engines.speech.contract import AudioInfo, Segment, TranscriptionOptions
from appliance.engines.speech.engine import SpeechEngine, Transcription


def submit(engine: SpeechEngine, audio: bytes, **options: Any) -> Transcription:
    """Submit a file with ``audio`` in it; the file is gone when this returns."""
    with tempfile.TemporaryFile() as file:
        file.write(audio)
        file.flush()
        return engine.transcribe(file.fileno(), TranscriptionOptions(**options))


async def hear(engine: SpeechEngine, audio: bytes, **options: Any) -> tuple[AudioInfo, list[Segment]]:
    """Transcribe ``audio`` to the end."""
    transcription = submit(engine, audio, **options)
    info = await transcription.info()
    return info, [segment async for segment in transcription]


def words(segments: list[Segment]) -> list[str]:
    """Return the words of the segments in lower case."""
    return re.findall(r"[a-z']+", "".join(segment.text for segment in segments).lower())


def audio_file(
    samples: NDArray[Any], rate: int = 16_000, kind: str = "WAV", subtype: str | None = None
) -> bytes:
    """Return ``samples`` as an audio file."""
    fd = os.memfd_create("audio")
    with os.fdopen(fd, "w+b") as file:
        soundfile.write(file, samples, rate, format=kind, subtype=subtype)
        file.seek(0)
        return file.read()
