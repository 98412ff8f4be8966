"""What only the multilingual model does: it hears which language is spoken."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.engines.speech.engine import SpeechEngine
from appliance.packs.manifest import read_manifest
from tests.engines.speech.hearing import hear, words
from tests.packs_fixture import built_pack
from tests.samples.speech import JFK_WORDS, jfk_wav


@pytest.fixture(scope="module")
def pack() -> Path:
    return built_pack("whisper-base")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_language_is_heard_and_words_have_times(engine: SpeechEngine) -> None:
    info, segments = await hear(engine, jfk_wav().read_bytes(), word_timestamps=True)

    assert info.language == "en"
    assert info.language_probability is not None
    assert 0.5 < info.language_probability <= 1.0
    assert words(segments) == JFK_WORDS
    # whisper.cpp's own figure is a constant on multilingual models; this one is the model's.
    assert 0.001 < segments[0].no_speech_prob < 0.3
    spoken = [word for segment in segments for word in segment.words or []]
    assert len(spoken) == len(JFK_WORDS)
    starts = [word.start for word in spoken if word.word.lower() == "ask"]
    assert starts[0] == pytest.approx(3.3, abs=0.5)


def test_the_packs_say_what_they_are(pack: Path) -> None:
    for name, multilingual in (("whisper-base", True), ("whisper-tiny.en", False)):
        manifest = read_manifest(built_pack(name))
        assert manifest.speech is not None
        assert manifest.speech.multilingual is multilingual
        assert manifest.context_length == 448
        figure = next(figure for figure in manifest.quality if figure.metric == "word_error_rate")
        assert figure.reference is not None
        assert figure.value <= figure.reference + 0.02
