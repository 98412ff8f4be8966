"""Audio files of every sort, good and hostile, become mono at 16 kHz or a plain refusal."""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.engines.errors import InputRefusedError
from appliance.engines.speech.container import sniff
from appliance.engines.speech.decoding import DecodedAudio, decode_audio
from tests.engines.speech.hearing import audio_file
from tests.samples.speech import jfk_wav

RATE = 16_000


def decode(audio: bytes, max_seconds: float = 60.0) -> DecodedAudio:
    with tempfile.TemporaryFile() as file:
        file.write(audio)
        file.flush()
        decoded = decode_audio(file.fileno(), max_seconds=max_seconds, check=lambda: None)
        # The caller's offset is the caller's.
        assert file.tell() == len(audio)
    return decoded


def tone(hertz: float, rate: int, seconds: float = 1.0) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def level(samples: NDArray[np.float32]) -> float:
    """Return the level of the middle part in decibels of full scale."""
    middle = samples[samples.size // 4 : -samples.size // 4].astype(np.float64)
    return 20 * float(np.log10(np.sqrt(np.mean(middle**2)) + 1e-12))


FORMATS = [
    ("WAV", "PCM_16", "wav"),
    ("WAV", "PCM_24", "wav"),
    ("WAV", "FLOAT", "wav"),
    ("WAV", "ULAW", "wav"),
    ("FLAC", "PCM_16", "flac"),
    ("MP3", "MPEG_LAYER_III", "mp3"),
    ("OGG", "VORBIS", "ogg"),
    ("OGG", "OPUS", "ogg"),
    ("AIFF", "PCM_16", "aiff"),
]


@pytest.mark.parametrize(("kind", "subtype", "container"), FORMATS)
def test_every_format_gives_the_same_sound(
    kind: str, subtype: str, container: str, jfk_samples: NDArray[np.float32]
) -> None:
    audio = audio_file(jfk_samples, RATE, kind, subtype)
    assert sniff(audio[:4096]) == container
    decoded = decode(audio)

    assert decoded.duration == pytest.approx(11.0, abs=0.15)
    # Lossy codecs add a delay of their own; the sound is found where it fits best.
    reference = jfk_samples[RATE : RATE * 9]
    heard = decoded.window(0, decoded.samples)
    spectrum = np.fft.rfft(heard, 1 << 19) * np.conj(np.fft.rfft(reference, 1 << 19))
    shift = int(np.argmax(np.fft.irfft(spectrum)))
    assert abs(shift - RATE) < 0.15 * RATE
    assert np.corrcoef(heard[shift : shift + reference.size], reference)[0, 1] > 0.95


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_keeps_speech_and_removes_what_would_alias(rate: int) -> None:
    heard = decode(audio_file(tone(1_000, rate), rate, "WAV", "FLOAT"))
    assert heard.duration == pytest.approx(1.0, abs=0.001)
    assert level(heard.window(0, RATE)) == pytest.approx(level(tone(1_000, RATE)), abs=0.05)

    if rate > 20_000:
        alias = decode(audio_file(tone(9_500, rate), rate, "WAV", "FLOAT"))
        assert level(alias.window(0, RATE)) < -85


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_channels_are_mixed(channels: int) -> None:
    # The tone is in one channel only.
    samples = np.zeros((RATE, channels), dtype=np.float32)
    samples[:, channels - 1] = tone(440, RATE)
    heard = decode(audio_file(samples, RATE, "WAV", "FLOAT"))

    expected = level(tone(440, RATE)) - 20 * np.log10(channels)
    assert level(heard.window(0, RATE)) == pytest.approx(expected, abs=0.1)


def test_what_is_louder_than_full_scale_is_clipped() -> None:
    heard = decode(audio_file(tone(100, RATE) * 1e6, RATE, "WAV", "FLOAT")).window(0, RATE)

    assert np.abs(heard).max() == 1.0


def wav_header(*, rate: int = RATE, channels: int = 1, data: int = 0, bits: int = 16) -> bytes:
    width = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * width & 0xFFFFFFFF, width & 0xFFFF, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + data & 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", data)
    )


NOISE = bytes(range(256)) * 8
HOSTILE = {
    "empty": b"",
    "one byte": b"R",
    "text": b"not audio at all " * 50,
    "zeros": bytes(5000),
    "png": b"\x89PNG\r\n\x1a\n" + NOISE,
    "zip": b"PK\x03\x04" + NOISE,
    "playlist": b"#EXTM3U\nhttp://127.0.0.1/secret\n",
    "concat script": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sound font": b"RIFF\x10\x00\x00\x00sfbk" + NOISE,
    "header only": wav_header(),
    "header of a header": wav_header()[:30],
    "header that promises gigabytes": wav_header(data=0xFFFFFFF0),
    "one hertz": wav_header(rate=1, data=2048) + NOISE,
    "no hertz": wav_header(rate=0, data=2048) + NOISE,
    "gigahertz": wav_header(rate=4_000_000_000, data=2048) + NOISE,
    "no channel": wav_header(channels=0, data=2048) + NOISE,
    "nine channels": wav_header(channels=9, data=2048) + NOISE,
    "many channels": wav_header(channels=60_000, data=2048) + NOISE,
    "flac of noise": b"fLaC" + NOISE,
    "ogg of noise": b"OggS" + NOISE,
    "aiff of noise": b"FORM\x00\x00\x08\x00AIFF" + NOISE,
    "mp3 of zeros": b"\xff\xfb\x90\x00" + bytes(3000),
    "tag without sound": b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
    "caf of noise": b"caff\x00\x01\x00\x00" + NOISE,
    "au of noise": b".snd" + NOISE,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_audio_is_refused(name: str) -> None:
    with pytest.raises(InputRefusedError) as caught:
        decode(HOSTILE[name])
    assert caught.value.status == 400
    assert caught.value.param == "file"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_samples_that_are_no_numbers_are_refused(value: float, rate: int) -> None:
    samples = tone(440, rate)
    samples[rate // 2] = value

    with pytest.raises(InputRefusedError, match="finite"):
        decode(audio_file(samples, rate, "WAV", "FLOAT"))


def test_a_bomb_of_silence_is_refused_without_being_unpacked() -> None:
    # An hour of silence in some hundred kilobytes.
    audio = audio_file(np.zeros(RATE * 3600, dtype=np.int16), RATE, "FLAC", "PCM_16")
    assert len(audio) < 1 << 20
    blocks = 0

    def count() -> None:
        nonlocal blocks
        blocks += 1

    with tempfile.TemporaryFile() as file:
        file.write(audio)
        file.flush()
        with pytest.raises(InputRefusedError, match="longer than 60 seconds"):
            decode_audio(file.fileno(), max_seconds=60, check=count)
    assert blocks < 10


def test_the_check_stops_the_decoding() -> None:
    def stop() -> None:
        raise InterruptedError

    with jfk_wav().open("rb") as file, pytest.raises(InterruptedError):
        decode_audio(file.fileno(), max_seconds=60, check=stop)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x00\x00\x00\x20ftypM4A ", "MP4/M4A"),
        (b"\x1aE\xdf\xa3\x01\x00\x00\x00", "WebM/Matroska"),
        (b"#!AMR\n", "AMR"),
        (b"\xff\xf1\x50\x80", "AAC"),
    ],
)
def test_a_container_without_a_decoder_is_named(
    head: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputRefusedError) as caught:
        decode(head + NOISE)

    assert name in caught.value.message
    assert "FLAC" in caught.value.message  # and what works


def test_a_file_that_is_cut_gives_what_is_there() -> None:
    audio = jfk_wav().read_bytes()
    heard = decode(audio[: len(audio) // 2])

    assert heard.duration == pytest.approx(5.5, abs=0.1)


SMALL = {
    (kind, subtype): audio_file(tone(300, RATE, 0.3), RATE, kind, subtype)
    for kind, subtype, _ in FORMATS
    if subtype != "ULAW"
}


@settings(max_examples=150, deadline=None)
@given(
    audio=st.sampled_from(list(SMALL.values())),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=12),
)
def test_a_damaged_file_is_decoded_or_refused(
    audio: bytes, cut: float, changes: list[tuple[float, int]]
) -> None:
    damaged = bytearray(audio)
    for where, value in changes:
        damaged[int(where * len(damaged))] = value
    try:
        heard = decode(bytes(damaged[: int(cut * len(damaged))]))
    except InputRefusedError:
        return
    window = heard.window(0, heard.samples)
    assert 0 < window.size <= 60 * RATE
    assert np.abs(window).max() <= 1.0


@given(st.binary(max_size=64))
def test_any_bytes_can_be_sniffed(head: bytes) -> None:
    sniff(head)


def test_a_long_file_costs_little_more_than_its_samples(tmp_path: Path) -> None:
    """Three minutes at 48 kHz in stereo are 69 MB of floats; decoded they are 6 MB."""
    import resource

    minute = np.tile(tone(200, 48_000)[:, None], (60, 2))
    import soundfile

    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 48_000, 2, subtype="PCM_16") as file:
        for _ in range(3):
            file.write(minute)
    del minute
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fd = os.open(path, os.O_RDONLY)
    try:
        heard = decode_audio(fd, max_seconds=3600, check=lambda: None)
    finally:
        os.close(fd)
    assert heard.duration == pytest.approx(180, abs=0.01)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB
