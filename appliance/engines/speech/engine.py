"""The speech engine in the service: a queue before one worker process that holds one model."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.speech.contract import (
    AudioInfo,
    Event,
    Job,
    ModelSettings,
    Segment,
    TranscriptionOptions,
)
from appliance.engines.speech.languages import require_language
from appliance.errors import OverloadedError
from appliance.packs.manifest import Manifest
from appliance.workers.errors import (
    WorkerError,
    WorkerStartError,
    WorkerStoppedError,
    WorkerTimeoutError,
)
from appliance.workers.protocol import Limits
from appliance.workers.supervisor import WorkerProcess

logger = logging.getLogger(__name__)

DEFAULT_MAX_SECONDS = 4 * 3600.0
# Address space beside model and audio: the interpreter, numpy, thread stacks and whisper.cpp's buffers.
_BASE_ADDRESS_SPACE = 4 << 30
# The model may be loaded a second time for word times, and both are read and copied while loading.
_MODEL_COPIES = 4
# 16-bit samples at 16 kHz, twice while the array grows.
_BYTES_PER_SECOND = 2 * 2 * 16_000

EventQueue = asyncio.Queue[Event | Exception | None]


class Transcription:
    """A submitted job. ``info`` first, then iterate once; close it when the caller leaves.

    Iterating raises InputRefusedError when the audio cannot be used, OverloadedError when the worker
    is not there, EngineError when it fails or the deadline passes.
    """

    def __init__(self) -> None:
        self._events: EventQueue = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._info: AudioInfo | None = None
        self._ended = False

    @property
    def duration(self) -> float:
        """The audio's length in seconds; known after ``info``."""
        return self._known().duration

    @property
    def language(self) -> str:
        """The spoken language's code; known after ``info``."""
        return self._known().language

    def _known(self) -> AudioInfo:
        if self._info is None:
            raise RuntimeError("await info() first")
        return self._info

    async def info(self) -> AudioInfo:
        """Wait for the job's turn and its first findings; a bad file is refused here, before any segment."""
        while self._info is None:
            event = await self._next()
            if event is None:
                raise EngineError("the speech worker ended a job without a word")
            if isinstance(event, AudioInfo):
                self._info = event
        return self._info

    async def __aiter__(self) -> AsyncIterator[Segment]:
        """Yield the segments as they become final. Leaving the loop early does not stop the job: close it."""
        await self.info()
        while (event := await self._next()) is not None:
            if not isinstance(event, AudioInfo):
                yield event.segment

    async def _next(self) -> Event | None:
        if self._ended:
            return None
        event = await self._events.get()
        if event is None or isinstance(event, Exception):
            self._ended = True
        if isinstance(event, Exception):
            raise event
        return event

    def cancel(self) -> None:
        """Stop the work within one encoder pass; returns at once. Harmless when finished."""
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """Cancel, and wait until the worker is free or has been killed."""
        self.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})


class SpeechEngine:
    """Transcribes with one model. Everything runs on the event loop that called ``start``."""

    def __init__(
        self,
        pack_dir: Path,
        manifest: Manifest,
        *,
        threads: int,
        max_queue: int,
        deadline_seconds: float,
        max_seconds: float = DEFAULT_MAX_SECONDS,
        grace_seconds: float = 30.0,
    ) -> None:
        """``max_queue`` jobs may wait beside the one that runs; ``deadline_seconds`` is one job's time.

        ``max_seconds`` is the longest audio that is taken; ``grace_seconds`` how long a cancelled job may
        take to stop before its worker is killed (an encoder pass cannot be interrupted). Raises
        EngineError when the manifest is not of a speech pack.
        """
        speech = manifest.speech
        packed = {file.path: file for file in manifest.file}
        if speech is None or speech.model not in packed:
            raise EngineError(f"the pack {manifest.name!r} holds no speech model")
        model = packed[speech.model]
        self.multilingual = speech.multilingual
        self._max_queue = max_queue
        self._deadline = deadline_seconds
        self._jobs: set[asyncio.Task[None]] = set()
        settings = ModelSettings(
            path=str((pack_dir / speech.model).resolve()),
            sha256=model.sha256,
            multilingual=speech.multilingual,
            alignment=speech.alignment,
            threads=threads,
            max_seconds=max_seconds,
        )
        space = _BASE_ADDRESS_SPACE + _MODEL_COPIES * model.size + int(max_seconds * _BYTES_PER_SECOND)
        self._worker = WorkerProcess(
            "speech",
            settings,
            limits=Limits(address_space=space),
            threads=threads,
            grace_seconds=grace_seconds,
        )

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and jobs start at once."""
        return self._worker.ready

    @property
    def waiting(self) -> int:
        """How many jobs run or wait."""
        return len(self._jobs)

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None while there is no worker."""
        return self._worker.pid

    async def start(self) -> None:
        """Start the worker, which loads the model in the background; ``ready`` says when it is."""
        await self._worker.start()

    async def wait_ready(self) -> None:
        """Wait until the model is loaded. Raises EngineError when it cannot be."""
        try:
            await self._worker.wait_ready()
        except WorkerStartError as error:
            raise EngineError(error.message) from error

    async def close(self) -> None:
        """Stop the worker; jobs that run or wait end with EngineError."""
        await self._worker.stop()
        for task in self._jobs:
            task.cancel()
        if self._jobs:
            await asyncio.wait(set(self._jobs))

    def transcribe(self, audio_fd: int, options: TranscriptionOptions) -> Transcription:
        """Submit the audio file behind ``audio_fd``, which is duplicated: the caller may close its own.

        Call it on the event loop. Raises OverloadedError when the queue is full, InputRefusedError when
        the language is unknown or not the model's.
        """
        language = require_language(options.language, multilingual=self.multilingual)
        if options.task == "translate" and not self.multilingual:
            raise InputRefusedError("this model understands English only and cannot translate")
        if len(self._jobs) > self._max_queue:
            raise OverloadedError("too many transcriptions are waiting; please try again later")
        options = msgspec.structs.replace(options, language=language)
        transcription = Transcription()
        events = transcription._events  # noqa: SLF001 - one class in two parts
        fd = os.dup(audio_fd)
        task = asyncio.create_task(self._run(events, fd, options), name="transcription")
        transcription._task = task  # noqa: SLF001 - one class in two parts
        self._jobs.add(task)

        # A callback, for a task that is cancelled before its first step runs nothing of its own.
        def finished(task: asyncio.Task[None]) -> None:
            self._jobs.discard(task)
            os.close(fd)
            events.put_nowait(_end(task))

        task.add_done_callback(finished)
        return transcription

    async def _run(self, events: EventQueue, fd: int, options: TranscriptionOptions) -> None:
        decoder = msgspec.msgpack.Decoder(Event)
        await self._worker.call(
            Job(options=options),
            fds=[fd],
            deadline_seconds=self._deadline,
            on_event=lambda data: events.put_nowait(decoder.decode(data)),
        )


def _end(task: asyncio.Task[None]) -> Exception | None:
    """Return how a job's task ended: None when all is said."""
    if task.cancelled():
        return EngineError("the transcription was cancelled")
    match task.exception():
        case None:
            return None
        case WorkerError() as error:
            return _engine_error(error)
        case error:
            logger.error("a transcription failed", exc_info=error)
            return EngineError("the speech engine failed")


def _engine_error(error: WorkerError) -> Exception:
    """Return the worker's error as the engine's: who calls the engine knows nothing of workers."""
    match error:
        case WorkerStartError():
            return OverloadedError(error.message)
        case WorkerTimeoutError():
            return EngineError("the transcription took longer than it may", status=503, code="timeout")
        case WorkerStoppedError():
            return EngineError("the speech engine stopped unexpectedly; please try again")
        case _ if error.status == InputRefusedError.status:
            return InputRefusedError(error.message, code=error.code, param=error.param)
        case _:
            return EngineError(error.message, status=error.status, type=error.type, code=error.code)
