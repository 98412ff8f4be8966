"""The speech worker: holds the model, decodes audio and transcribes it, one job after another."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.speech.alignment import WordAligner
from appliance.engines.speech.contract import (
    AudioInfo,
    Job,
    ModelSettings,
    Segment,
    SegmentEvent,
    TranscriptionOptions,
    Word,
)
from appliance.engines.speech.decoding import decode_audio
from appliance.engines.speech.languages import require_language
from appliance.engines.speech.library import WhisperModel
from appliance.engines.speech.transcription import Transcriber
from appliance.workers.child import Job as WorkerJob

logger = logging.getLogger(__name__)


def open_speech(arguments: msgspec.Raw) -> Callable[[WorkerJob], None]:
    """Open the kind ``speech``: check and load the model that ``arguments`` (ModelSettings) name.

    Raises EngineError when the file is absent, not the one that was packed, or cannot be loaded.
    """
    settings = msgspec.msgpack.decode(arguments, type=ModelSettings)
    path = Path(settings.path)
    # whisper.cpp takes the process down on a corrupt file, and the binding would download a missing one.
    if (digest := _sha256(path)) != settings.sha256:
        raise EngineError(f"the model file is not the one that was packed (SHA-256 {digest[:16]}…)")
    model = WhisperModel(path, threads=settings.threads)
    if model.multilingual != settings.multilingual:
        raise EngineError("the model file is not of the kind that its pack says")
    return _Speech(settings, model).transcribe


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"the model file cannot be read: {error.strerror}") from error


class _Speech:
    def __init__(self, settings: ModelSettings, model: WhisperModel) -> None:
        self._settings = settings
        self._model = model

    def transcribe(self, job: WorkerJob) -> None:
        """Do one job (contract.Job): emit an AudioInfo, then each segment as soon as it is final."""
        options = msgspec.msgpack.decode(job.arguments, type=Job).options
        require_language(options.language, multilingual=self._model.multilingual)
        (fd,) = job.fds
        audio = decode_audio(fd, max_seconds=self._settings.max_seconds, check=job.check)
        aligner = self._aligner(options, job.check)
        try:
            transcriber = Transcriber(
                self._model,
                options,
                check=job.check,
                words=None if aligner is None else _Words(aligner, options),
            )
            for event in transcriber.run(audio):
                job.emit(event if isinstance(event, AudioInfo) else SegmentEvent(segment=event))
        finally:
            if aligner is not None:
                aligner.close()

    def _aligner(self, options: TranscriptionOptions, check: Callable[[], None]) -> WordAligner | None:
        """Load the second context for word times; it lives as long as the job, so that memory stays flat."""
        if not options.word_timestamps:
            return None
        settings = self._settings
        return WordAligner(
            self._model, Path(settings.path), settings.alignment, threads=settings.threads, check=check
        )


class _Words:
    """Word times for the transcriber, by the aligner."""

    def __init__(self, aligner: WordAligner, options: TranscriptionOptions) -> None:
        self._aligner = aligner
        self._translate = options.task == "translate"

    def find(
        self,
        samples: NDArray[np.float32],
        segments: list[Segment],
        prompt: list[int],
        language: str,
        offset: float,
    ) -> list[list[Word]]:
        """Return the words of each segment."""
        return self._aligner.words(samples, segments, prompt, offset, language, translate=self._translate)
