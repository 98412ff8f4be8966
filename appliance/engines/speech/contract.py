"""The words that the speech engine and its worker share: options in, segments out."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Task = Literal["transcribe", "translate"]

SAMPLE_RATE = 16_000


class TranscriptionOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller asks for.

    ``language`` is an ISO code of Whisper's table, None detects it. ``prompt`` is text that the
    speech is taken to follow. ``temperature`` 0 is greedy and raises itself where the result is poor;
    above 0 it is where that raising starts. ``task`` translate gives English. ``word_timestamps``
    adds ``words`` to the segments and costs a second pass over the audio.
    """

    language: str | None = None
    prompt: str = ""
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    task: Task = "transcribe"
    word_timestamps: bool = False


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """A word and its times in seconds from the start of the audio; ``word`` has no spaces around it."""

    word: str
    start: float
    end: float


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of speech.

    ``start`` and ``end`` are seconds, ordered and not overlapping; ``text`` begins with a space where
    the language writes one; ``tokens`` are the model's ids, time stamps included. ``seek`` is the start
    of the 30 s window it was heard in, in hundredths of a second. ``temperature``, ``avg_logprob``,
    ``compression_ratio`` and ``no_speech_prob`` are the figures of that window's decoding, as in
    OpenAI's reference.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[Word] | None = None


class AudioInfo(msgspec.Struct, frozen=True, kw_only=True, tag="audio"):
    """The first thing known of a job: ``duration`` in seconds, and the spoken language.

    ``language_probability`` is None where the caller named the language or the model has only one.
    """

    duration: float
    language: str
    language_probability: float | None


class SegmentEvent(msgspec.Struct, frozen=True, kw_only=True, tag="segment"):
    """A segment that is final."""

    segment: Segment


Event = AudioInfo | SegmentEvent


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker needs to load its model: the file, its hash, and what it may use.

    ``alignment`` is the alignment-heads preset for word times, such as ``tiny.en``, or None.
    ``max_seconds`` is the longest audio that is taken.
    """

    path: str
    sha256: str
    multilingual: bool
    alignment: str | None
    threads: int
    max_seconds: float


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One transcription for the worker; the audio comes as a file descriptor beside it."""

    options: TranscriptionOptions
