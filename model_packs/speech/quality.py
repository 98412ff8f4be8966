"""Word error rate of a Whisper model on spoken samples with known words.

The samples are read out of pinned source archives at build time:

- ``jfk.wav``: J. F. Kennedy's inaugural address (1961), a work of the US government; in the source
  archive of pywhispercpp (MIT), as whisper.cpp's own sample.
- ``austen-*.wav``: a LibriVox volunteer reading "Sense and Sensibility"; LibriVox recordings are in
  the public domain; in the source archive of pocketsphinx (BSD-2-Clause), as its test data.
"""

from __future__ import annotations

import re
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_packs.errors import SourceError

# The words spoken in each sample, from the speech and the book.
TRANSCRIPTS = {
    "jfk.wav": "And so my fellow Americans, ask not what your country can do for you, "
    "ask what you can do for your country.",
    "austen-0870.wav": "and Mr. John Dashwood had then leisure to consider "
    "how much there might be prudently in his power to do for them.",
    "austen-0890.wav": "unless to be rather cold hearted and rather selfish is to be ill-disposed",
    "austen-0920.wav": "Had he married a more amiable woman, "
    "he might have been made still more respectable than he was",
}
SAMPLE_RATE = 16_000


def words(text: str) -> list[str]:
    """Return the words of ``text``, without case and punctuation; hyphens part words."""
    plain = re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("mr.", "mister").replace("mr ", "mister "))
    return plain.split()


def word_errors(spoken: list[str], heard: list[str]) -> int:
    """Return the least number of substitutions, insertions and deletions between two word lists."""
    previous = list(range(len(heard) + 1))
    for row, word in enumerate(spoken, 1):
        current = [row]
        for column, other in enumerate(heard, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (word != other)))
        previous = current
    return previous[-1]


class JoinedSamples:
    """The samples one after another: together they fill one 30 s window, so that measuring stays quick."""

    def __init__(self, members: dict[str, Path]) -> None:
        """Read the members that are samples. Raises SourceError when there is none or one is not as expected."""
        self.names = [name for name in TRANSCRIPTS if name in members]
        if not self.names:
            raise SourceError("the recipe names no spoken sample to measure the word error rate on")
        self._data = np.concatenate([_read_wav(members[name]) for name in self.names])
        self.spoken = [word for name in self.names for word in words(TRANSCRIPTS[name])]

    @property
    def samples(self) -> int:
        """How many samples there are, at 16 kHz."""
        return int(self._data.size)

    def window(self, start: int, size: int) -> NDArray[np.float32]:
        """Return up to ``size`` samples from ``start``, float32 in [-1, 1]."""
        return self._data[start : start + size]


def _read_wav(path: Path) -> NDArray[np.float32]:
    try:
        with wave.open(str(path), "rb") as file:
            if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, SAMPLE_RATE):
                raise SourceError(f"{path.name} is not 16-bit mono at 16 kHz")
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise SourceError(f"{path.name} is not a WAV file: {error}") from error
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768)


def word_error_rate(model: Path, samples: JoinedSamples, *, threads: int) -> float:
    """Transcribe the samples greedily with the ggml file at ``model``; return errors per spoken word."""
    from appliance.engines.speech.contract import Segment, TranscriptionOptions
    from appliance.engines.speech.library import WhisperModel
    from appliance.engines.speech.transcription import Transcriber

    loaded = WhisperModel(model, threads=threads)
    try:
        job = Transcriber(loaded, TranscriptionOptions(language="en"), check=lambda: None)
        heard = [event.text for event in job.run(samples) if isinstance(event, Segment)]
    finally:
        loaded.close()
    return word_errors(samples.spoken, words("".join(heard))) / len(samples.spoken)
