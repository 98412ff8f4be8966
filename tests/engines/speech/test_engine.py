"""The speech engine on a recording with known words, through its real worker."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.speech.engine import SpeechEngine
from appliance.errors import OverloadedError
from tests.engines.speech.hearing import audio_file, hear, submit, words
from tests.samples.speech import JFK_WORDS, jfk_wav

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 16_000


@pytest.fixture(scope="module")
def jfk() -> bytes:
    return jfk_wav().read_bytes()


async def test_a_spoken_sentence_and_the_models_own_figures(engine: SpeechEngine, jfk: bytes) -> None:
    info, segments = await hear(engine, jfk)

    assert words(segments) == JFK_WORDS
    assert info.duration == 11.0
    assert info.language == "en"
    assert info.language_probability is None  # the model knows one language
    previous = 0.0
    for number, segment in enumerate(segments):
        assert segment.id == number
        assert previous <= segment.start <= segment.end <= info.duration
        assert segment.temperature == 0.0
        assert -1.0 < segment.avg_logprob < 0.0
        assert 0.001 < segment.no_speech_prob < 0.3
        assert 0.5 < segment.compression_ratio < 2.4
        assert len(segment.tokens) > 2
        assert segment.words is None
        previous = segment.end


@pytest.mark.parametrize(
    ("kind", "subtype", "rate"),
    [("MP3", "MPEG_LAYER_III", 16_000), ("FLAC", "PCM_16", 48_000), ("OGG", "OPUS", 48_000)],
)
async def test_other_formats_and_rates_say_the_same(
    engine: SpeechEngine, jfk_samples: NDArray[np.float32], kind: str, subtype: str, rate: int
) -> None:
    samples = np.repeat(jfk_samples, rate // RATE)
    _, segments = await hear(engine, audio_file(samples, rate, kind, subtype))

    assert words(segments) == JFK_WORDS


async def test_words_have_their_times(engine: SpeechEngine, jfk: bytes) -> None:
    _, segments = await hear(engine, jfk, word_timestamps=True)

    spoken = [word for segment in segments for word in segment.words or []]
    assert [word.word.strip(",.").lower() for word in spoken] == JFK_WORDS
    previous = 0.0
    for segment in segments:
        for word in segment.words or []:
            assert previous <= word.start <= word.end <= 11.0
            assert segment.start <= word.start
            previous = word.end
    # Where the recording says them, read off its envelope: "ask" follows a pause from 2.3 to 3.2 s, the
    # second "ask" one from 7.5 to 8.1 s.
    starts = [word.start for word in spoken if word.word.lower() == "ask"]
    assert starts[0] == pytest.approx(3.3, abs=0.4)
    assert starts[1] == pytest.approx(8.15, abs=0.4)


async def test_long_audio_comes_in_windows(engine: SpeechEngine, jfk_samples: NDArray[np.float32]) -> None:
    pause = np.zeros(8 * RATE, dtype=np.float32)
    long = np.concatenate([jfk_samples, pause, jfk_samples, pause, jfk_samples])
    info, segments = await hear(engine, audio_file(long))

    assert info.duration == pytest.approx(49.0)
    assert words(segments) == JFK_WORDS * 3
    assert [segment.start for segment in segments] == sorted(segment.start for segment in segments)
    assert segments[0].seek == 0
    assert segments[-1].seek > 0
    assert abs(segments[-1].end - 49.0) < 1.5


@pytest.mark.parametrize("level", [0.0, 1e-5, 0.02])
async def test_silence_and_noise_say_nothing(engine: SpeechEngine, level: float) -> None:
    noise = np.random.default_rng(1).standard_normal(5 * RATE).astype(np.float32) * level
    info, segments = await hear(engine, audio_file(noise, subtype="FLOAT"))

    assert segments == []
    assert info.duration == 5.0
    assert info.language == "en"


async def test_a_click_too_short_to_hear_says_nothing(engine: SpeechEngine) -> None:
    info, segments = await hear(engine, audio_file(np.full(10, 0.5)))

    assert segments == []
    assert info.duration == pytest.approx(10 / RATE)


async def test_a_prompt_leads_the_spelling(engine: SpeechEngine, jfk: bytes) -> None:
    _, segments = await hear(engine, jfk, prompt="AND SO MY FELLOW CITIZENS, THE AMERICANS,")

    text = "".join(segment.text for segment in segments)
    assert text.upper() == text
    assert "YOUR COUNTRY" in text


async def test_a_prompt_of_any_length_is_taken(engine: SpeechEngine, jfk: bytes) -> None:
    _, segments = await hear(engine, jfk, prompt="So it was said, and said again. \0🦜 " * 5_000)

    assert segments


async def test_a_temperature_is_taken_and_told(engine: SpeechEngine, jfk: bytes) -> None:
    _, segments = await hear(engine, jfk, temperature=0.4)

    assert "country" in words(segments)
    assert {segment.temperature for segment in segments} <= {0.4, 0.6, 0.8, 1.0}


NOT_FINITE = np.array([0.1, math.nan] * 8_000, dtype=np.float32)


@pytest.mark.parametrize(
    "audio",
    [
        b"",
        b"not audio at all " * 100,
        b"RIFF\xff\xff\xff\xffWAVEfmt ",
        b"\x00\x00\x00\x20ftypM4A \x00\x00\x02\x00isomiso2" + bytes(500),
        audio_file(NOT_FINITE, subtype="FLOAT"),
        audio_file(np.zeros(RATE * 121, dtype=np.int16), kind="FLAC"),
    ],
    ids=["empty", "text", "cut", "m4a", "nan", "too long"],
)
async def test_bad_audio_is_a_400_and_the_worker_lives(engine: SpeechEngine, audio: bytes) -> None:
    pid = engine.worker_pid
    with pytest.raises(InputRefusedError) as caught:
        await submit(engine, audio).info()

    assert caught.value.status == 400
    assert caught.value.message
    assert engine.worker_pid == pid


@pytest.mark.parametrize("options", [{"language": "xx"}, {"language": "fr"}, {"task": "translate"}])
async def test_what_the_model_cannot_do_is_a_400(
    engine: SpeechEngine, jfk: bytes, options: dict[str, Any]
) -> None:
    with pytest.raises(InputRefusedError):
        submit(engine, jfk, **options)


async def test_a_full_queue_refuses(engine: SpeechEngine, jfk: bytes) -> None:
    taken = [submit(engine, jfk) for _ in range(3)]
    with pytest.raises(OverloadedError) as caught:
        submit(engine, jfk)
    assert caught.value.retry_after

    for transcription in taken[1:]:
        transcription.cancel()
    assert words([segment async for segment in taken[0]]) == JFK_WORDS
    for transcription in taken[1:]:
        with pytest.raises(EngineError, match="cancelled"):
            await transcription.info()
    assert engine.waiting == 0


async def test_closing_a_running_job_frees_the_worker(
    engine: SpeechEngine, jfk_samples: NDArray[np.float32]
) -> None:
    pid = engine.worker_pid
    transcription = submit(engine, audio_file(np.tile(jfk_samples, 8)))
    await transcription.info()  # it runs now, with most of its windows before it
    await transcription.aclose()

    assert engine.waiting == 0
    _, segments = await hear(engine, audio_file(jfk_samples))
    assert words(segments) == JFK_WORDS
    assert engine.worker_pid == pid


async def test_no_descriptor_and_no_memory_is_left_behind(engine: SpeechEngine, jfk: bytes) -> None:
    def of_worker() -> tuple[int, int]:
        status = Path(f"/proc/{engine.worker_pid}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return len(list(Path(f"/proc/{engine.worker_pid}/fd").iterdir())), int(resident.split()[1])

    first = await hear(engine, jfk)
    files, memory = of_worker()
    here = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(6):
        # The same audio gives the same answer, and what an earlier job asked for does not stick.
        assert await hear(engine, jfk) == first

    files_after, memory_after = of_worker()
    assert files_after == files
    assert len(list(Path("/proc/self/fd").iterdir())) == here
    assert memory_after - memory < 8_000  # KiB


async def test_two_at_once_are_not_mixed_up(engine: SpeechEngine, jfk: bytes) -> None:
    silence = audio_file(np.zeros(2 * RATE))
    (_, said), (info, nothing) = await asyncio.gather(hear(engine, jfk), hear(engine, silence))

    assert words(said) == JFK_WORDS
    assert nothing == []
    assert info.duration == 2.0
