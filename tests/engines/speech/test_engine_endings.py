"""What ends a transcription or the worker under it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.speech.engine import SpeechEngine
from appliance.errors import OverloadedError
from appliance.packs.manifest import Manifest, read_manifest
from tests.engines.speech.hearing import audio_file, hear, submit, words
from tests.samples.speech import JFK_WORDS, jfk_wav

MakeEngine = Callable[..., Awaitable[SpeechEngine]]


@pytest.fixture
async def make_engine(pack: Path) -> AsyncIterator[MakeEngine]:
    made: list[SpeechEngine] = []

    async def make(directory: Path = pack, manifest: Manifest | None = None, **settings: Any) -> SpeechEngine:
        settings = {"threads": 2, "max_queue": 2, "deadline_seconds": 300.0} | settings
        engine = SpeechEngine(directory, manifest or read_manifest(pack), **settings)
        made.append(engine)
        await engine.start()
        return engine

    yield make
    for engine in made:
        await engine.close()


@pytest.fixture
def long_audio(jfk_samples: NDArray[np.float32]) -> bytes:
    return audio_file(np.tile(jfk_samples, 8))


async def test_a_killed_worker_fails_its_job_and_the_next_one_works(
    make_engine: MakeEngine, long_audio: bytes
) -> None:
    engine = await make_engine()
    transcription = submit(engine, long_audio)
    await transcription.info()
    assert engine.worker_pid is not None
    os.kill(engine.worker_pid, signal.SIGKILL)

    with pytest.raises(EngineError, match="stopped unexpectedly") as caught:
        _ = [segment async for segment in transcription]
    assert caught.value.status == 500
    _, segments = await hear(engine, jfk_wav().read_bytes())
    assert words(segments) == JFK_WORDS


async def test_the_deadline_ends_a_job_and_keeps_the_worker(
    make_engine: MakeEngine, long_audio: bytes
) -> None:
    engine = await make_engine(deadline_seconds=0.3)
    await engine.wait_ready()
    pid = engine.worker_pid
    with pytest.raises(EngineError, match="longer than it may") as caught:
        await submit(engine, long_audio).info()

    assert caught.value.status == 503
    assert engine.worker_pid == pid


async def test_closing_the_engine_ends_its_jobs(make_engine: MakeEngine, long_audio: bytes) -> None:
    engine = await make_engine()
    running, waiting = submit(engine, long_audio), submit(engine, long_audio)
    await running.info()
    await engine.close()

    with pytest.raises(EngineError):
        _ = [segment async for segment in running]
    with pytest.raises((EngineError, OverloadedError)):
        await waiting.info()
    assert not engine.ready
    assert engine.worker_pid is None


async def test_a_model_that_was_tampered_with_is_never_loaded(
    make_engine: MakeEngine, pack: Path, tmp_path: Path
) -> None:
    damaged = bytearray((pack / "model.bin").read_bytes())
    damaged[1000] ^= 1
    (tmp_path / "model.bin").write_bytes(damaged)
    engine = await make_engine(tmp_path)

    with pytest.raises(EngineError, match="not the one that was packed"):
        await engine.wait_ready()
    with pytest.raises(OverloadedError):
        await submit(engine, jfk_wav().read_bytes()).info()
    assert not engine.ready


async def test_a_model_that_is_not_there_is_said(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = await make_engine(tmp_path)

    with pytest.raises(EngineError, match="cannot be read"):
        await engine.wait_ready()


async def test_a_pack_that_says_another_kind_is_refused(make_engine: MakeEngine, pack: Path) -> None:
    manifest = read_manifest(pack)
    assert manifest.speech is not None
    speech = msgspec.structs.replace(manifest.speech, multilingual=True)
    engine = await make_engine(manifest=msgspec.structs.replace(manifest, speech=speech))

    with pytest.raises(EngineError, match="not of the kind"):
        await engine.wait_ready()


def test_a_pack_of_another_task_is_refused(pack: Path) -> None:
    manifest = msgspec.structs.replace(read_manifest(pack), speech=None)

    with pytest.raises(EngineError, match="holds no speech model"):
        SpeechEngine(pack, manifest, threads=1, max_queue=1, deadline_seconds=1)


async def test_the_worker_is_confined(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    await engine.wait_ready()
    status = Path(f"/proc/{engine.worker_pid}/status").read_text()

    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    assert "CoreDumping:\t0" in status
    environment = Path(f"/proc/{engine.worker_pid}/environ").read_bytes()
    assert b"OMP_WAIT_POLICY=passive" in environment
