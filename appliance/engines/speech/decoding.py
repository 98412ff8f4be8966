"""Decode an audio file into mono at 16 kHz, block by block; runs in the worker, on hostile files.

libsndfile (through soundfile) reads WAV, FLAC, MP3, Ogg (Vorbis, Opus), AIFF, AU and CAF. Other
containers need PyAV, which is used when it is installed and is no dependency of ours. The result is
kept as 16-bit samples: 32 kB a second, an hour in 115 MB.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import InputRefusedError
from appliance.engines.speech.container import HEAD_BYTES, NAMES, SNDFILE, Container, sniff
from appliance.engines.speech.contract import SAMPLE_RATE

MAX_CHANNELS = 8
MIN_RATE = 2_000
MAX_RATE = 384_000
# Frames of one block, all channels together: a megabyte of floats, whatever the file says.
_BLOCK_VALUES = 1 << 18
_INT16 = 32767.0
PLAYABLE = "WAV, FLAC, MP3, Ogg Vorbis, Ogg Opus and AIFF"

Block = NDArray[np.float32]


class DecodedAudio:
    """Mono audio at 16 kHz, kept as 16-bit samples in blocks of one second and more."""

    def __init__(self, samples: NDArray[np.int16]) -> None:
        self._samples = samples

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return int(self._samples.size)

    @property
    def duration(self) -> float:
        """The length in seconds."""
        return self.samples / SAMPLE_RATE

    def window(self, start: int, size: int) -> NDArray[np.float32]:
        """Return up to ``size`` samples from ``start`` as float32 in [-1, 1]."""
        return self._samples[start : start + size].astype(np.float32) / np.float32(_INT16)


def decode_audio(fd: int, *, max_seconds: float, check: Callable[[], None]) -> DecodedAudio:
    """Decode the file behind ``fd`` from its start, whatever its offset; ``fd`` stays open.

    ``check`` is called between blocks and may raise to stop. Raises InputRefusedError (400) when the
    file is empty, not audio, broken, silent of any sample, longer than ``max_seconds``, has too many
    channels or an impossible rate, or holds samples that are not numbers.
    """
    head = os.pread(fd, HEAD_BYTES, 0)
    if not head:
        raise _refused("the audio file is empty")
    container = sniff(head)
    if container is None:
        raise _refused(f"the file is not audio that is understood here; {PLAYABLE} work")
    read = _read_with_sndfile if container in SNDFILE else _read_with_av
    audio = _collect(read(fd, container), max_seconds, check)
    if audio.size == 0:
        raise _refused(f"the {NAMES[container]} file holds no audio")
    return DecodedAudio(audio)


def _refused(message: str) -> InputRefusedError:
    return InputRefusedError(message, param="file")


def _collect(blocks: Iterator[Block], max_seconds: float, check: Callable[[], None]) -> NDArray[np.int16]:
    """Gather 16 kHz mono blocks into one array of 16-bit samples."""
    limit = int(max_seconds * SAMPLE_RATE)
    gathered = np.empty(30 * SAMPLE_RATE, dtype=np.int16)
    count = 0
    for block in blocks:
        check()
        if not np.isfinite(block).all():
            raise _refused("the audio holds samples that are not finite numbers")
        end = count + block.size
        if end > limit:
            raise _refused(f"the audio is longer than {max_seconds:g} seconds, the most that is taken")
        if end > gathered.size:
            # Grown in place: no second copy of an hour of audio.
            gathered.resize(min(limit, max(end, gathered.size * 3 // 2)), refcheck=False)
        np.rint(np.clip(block, -1.0, 1.0) * _INT16, out=gathered[count:end], casting="unsafe")
        count = end
    gathered.resize(count, refcheck=False)
    return gathered


def _check_format(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise _refused(f"the audio's sampling rate is {rate} Hz; {MIN_RATE} to {MAX_RATE} Hz are taken")
    if not 1 <= channels <= MAX_CHANNELS:
        raise _refused(f"the audio has {channels} channels; 1 to {MAX_CHANNELS} are taken")


def _reopen(fd: int) -> int:
    """Return a descriptor with an offset of its own: the sender's shares its offset with ours."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc, or a file that may not be opened a second time
        own = os.dup(fd)
        os.lseek(own, 0, os.SEEK_SET)
        return own


def _read_with_sndfile(fd: int, container: Container) -> Iterator[Block]:
    """Yield the file's audio as mono blocks at 16 kHz."""
    import soundfile

    own = _reopen(fd)
    try:
        with soundfile.SoundFile(own, closefd=True) as file:
            _check_format(file.samplerate, file.channels)
            yield from _resample(_sndfile_blocks(file), file.samplerate)
    except soundfile.LibsndfileError as error:
        raise _refused(f"the {NAMES[container]} file cannot be decoded: {error.error_string}") from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise _refused(f"the {NAMES[container]} file cannot be decoded") from error


def _sndfile_blocks(file: Any) -> Iterator[Block]:
    frames = max(1, _BLOCK_VALUES // file.channels)
    while True:
        block: Block = file.read(frames, dtype="float32", always_2d=True)
        if not len(block):
            return
        yield block.mean(axis=1, dtype=np.float32) if file.channels > 1 else block[:, 0]


def _resample(blocks: Iterator[Block], rate: int) -> Iterator[Block]:
    """Bring mono blocks from ``rate`` to 16 kHz by libsamplerate's band-limited sinc interpolation.

    Its medium filter passes 90 % of the band and holds what would alias 121 dB down.
    """
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    import samplerate

    resampler = samplerate.Resampler("sinc_medium", channels=1)
    ratio = SAMPLE_RATE / rate
    taken = given = 0
    for block in blocks:
        # The converter spreads one bad sample over all that follow.
        if not np.isfinite(block).all():
            raise _refused("the audio holds samples that are not finite numbers")
        resampled: Block = resampler.process(block, ratio)
        taken, given = taken + block.size, given + resampled.size
        yield resampled
    # The filter holds some milliseconds back; silence pushes them out.
    rest: Block = resampler.process(np.zeros(rate // 4, dtype=np.float32), ratio)
    yield rest[: max(0, round(taken * ratio) - given)]


def _read_with_av(fd: int, container: Container) -> Iterator[Block]:
    """Yield the first audio stream as mono blocks at 16 kHz with PyAV, where it is installed."""
    try:
        av: Any = importlib.import_module("av")
    except ImportError as error:
        raise _refused(
            f"{NAMES[container]} files cannot be decoded on this box: "
            f"no decoder for them is installed. {PLAYABLE} work"
        ) from error
    own = _reopen(fd)
    try:
        # The format is named, so that no playlist or script format of the library is ever tried.
        names = {"mp4": "mp4", "matroska": "matroska", "aac": "aac", "amr": "amr", "asf": "asf"}
        with os.fdopen(own, "rb") as file, av.open(file, format=names[container]) as media:
            stream = media.streams.audio[0]
            _check_format(stream.rate, stream.channels)
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
            for frame in media.decode(stream):
                for piece in resampler.resample(frame):
                    yield piece.to_ndarray().reshape(-1)
            for piece in resampler.resample(None):
                yield piece.to_ndarray().reshape(-1)
    except InputRefusedError:
        raise
    # Its exceptions for broken files are many and not of one family (an IndexError for no audio).
    except Exception as error:
        raise _refused(f"the {NAMES[container]} file cannot be decoded") from error
