"""Transcribe audio of any length: windows of up to 30 s, each beginning where the last one's text ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from appliance.engines.speech.contract import SAMPLE_RATE, AudioInfo, Segment, TranscriptionOptions, Word
from appliance.engines.speech.languages import LANGUAGES, require_language
from appliance.engines.speech.library import MIN_SECONDS, WhisperModel
from appliance.engines.speech.rules import TOKENS_PER_SECOND
from appliance.engines.speech.window import Attempt, Hearing, WindowDecoder

WINDOW_SECONDS = 30
# A shorter rest at the end of the audio, in which nothing was heard, is not listened to once more.
SHORTEST_REST_SECONDS = 1.0
# Below -80 dB of full scale: not even the noise of a microphone, so the model is not asked.
SILENCE_PEAK = 1e-4
# Only this much of the end of a prompt can reach the model.
MAX_PROMPT_CHARACTERS = 4096
# Text sampled above this temperature is too doubtful to lead the next window.
_MAX_CARRIED_TEMPERATURE = 0.5

_CODES = list(LANGUAGES)


class Audio(Protocol):
    """Decoded audio: mono at 16 kHz."""

    @property
    def samples(self) -> int:
        """How many samples there are."""
        ...

    def window(self, start: int, size: int) -> NDArray[np.float32]:
        """Return up to ``size`` samples from ``start``, float32 in [-1, 1]."""
        ...


class WordFinder(Protocol):
    """Finds when the words of a window were spoken."""

    def find(
        self,
        samples: NDArray[np.float32],
        segments: list[Segment],
        prompt: list[int],
        language: str,
        offset: float,
    ) -> list[list[Word]]:
        """Return the words of each segment; ``offset`` is the window's start in seconds."""
        ...


class _Span(msgspec.Struct, frozen=True):
    """A segment inside its window: times in seconds and its tokens."""

    start: float
    end: float
    tokens: list[int]


class Transcriber:
    """One job on one model."""

    def __init__(
        self,
        model: WhisperModel,
        options: TranscriptionOptions,
        *,
        check: Callable[[], None],
        words: WordFinder | None = None,
    ) -> None:
        """``check`` may raise to stop; ``words`` is asked for word times when the options want them.

        Raises InputRefusedError when the model does not know the language.
        """
        self._model = model
        self._options = options
        self._language = require_language(options.language, multilingual=model.multilingual)
        self._decoder = WindowDecoder(model, check)
        self._words = words
        # What leads the next window: the caller's prompt, then the text so far, time stamps included.
        self._context: list[int] = []
        if prompt := options.prompt.strip()[-MAX_PROMPT_CHARACTERS:]:
            self._context = model.tokenize(" " + prompt)

    def run(self, audio: Audio) -> Iterator[AudioInfo | Segment]:
        """Yield the AudioInfo once, then the segments in order of time."""
        duration = audio.samples / SAMPLE_RATE
        seek, count, previous_end = 0, 0, 0.0
        heard: AudioInfo | None = None
        while audio.samples - seek >= MIN_SECONDS * SAMPLE_RATE:
            samples = audio.window(seek, WINDOW_SECONDS * SAMPLE_RATE)
            if float(np.abs(samples).max()) < SILENCE_PEAK:
                seek += samples.size
                continue
            hearing = self._decoder.hear(samples)
            language = self._language or _likeliest(hearing)
            prompt = self._prompt(language)
            attempt = self._decoder.decode(
                prompt, hearing, self._options.temperature, max_tokens=self._model.n_text_ctx // 2
            )
            last = seek + samples.size >= audio.samples
            spans, advance = self._split(attempt, samples.size, last=last)
            offset = seek / SAMPLE_RATE
            segments: list[Segment] = []
            for span in [] if attempt.silent else spans:
                start = min(max(offset + span.start, previous_end), duration)
                end = min(max(offset + span.end, start), duration)
                segment = self._segment(count, seek, start, end, span.tokens, attempt)
                if segment.text.strip():
                    segments.append(segment)
                    count, previous_end = count + 1, end
            if segments and heard is None:
                # Settled by the first window with speech in it: noise has no language.
                heard = self._info(duration, language, hearing)
                self._language = language
                yield heard
            self._carry(segments, attempt.temperature)
            yield from self._with_words(segments, samples, prompt, language, offset)
            seek += advance
        if heard is None:
            # Nothing was said, so in no language either; English stands for none.
            yield AudioInfo(duration=duration, language=self._language or "en", language_probability=None)

    def _info(self, duration: float, language: str, hearing: Hearing) -> AudioInfo:
        probability = hearing.languages[language] if self._language is None else None
        return AudioInfo(duration=duration, language=language, language_probability=probability)

    def _prompt(self, language: str) -> list[int]:
        model = self._model
        prompt = []
        if self._context:
            prompt = [model.prev, *self._context[-(model.n_text_ctx // 2 - 1) :]]
        prompt.append(model.sot)
        if model.multilingual:
            # English needs no translation, and the models are trained to translate from other languages only.
            translate = self._options.task == "translate" and language != "en"
            task = model.translate if translate else model.transcribe
            prompt += [model.language_token(_CODES.index(language)), task]
        return prompt

    def _split(self, attempt: Attempt, size: int, *, last: bool) -> tuple[list[_Span], int]:
        """Cut the tokens at pairs of time stamps; return the spans and how many samples were dealt with.

        Text after the last pair is dropped: the next window begins there and hears it whole.
        """
        tokens, begin = attempt.tokens, self._model.timestamp_begin
        is_time = [token >= begin for token in tokens]
        cuts = [index for index in range(1, len(tokens)) if is_time[index] and is_time[index - 1]]
        ends_single = is_time[-2:] == [False, True]
        if not cuts:
            times = [token - begin for token in tokens if token > begin]
            end = times[-1] / TOKENS_PER_SECOND if times else size / SAMPLE_RATE
            return [_Span(0.0, end, tokens)] if tokens else [], size
        if ends_single:
            cuts.append(len(tokens))
        spans = []
        for first, stop in zip([0, *cuts], cuts, strict=False):
            start, end = tokens[first] - begin, tokens[stop - 1] - begin
            spans.append(_Span(start / TOKENS_PER_SECOND, end / TOKENS_PER_SECOND, tokens[first:stop]))
        heard = 0 if ends_single else (tokens[cuts[-1] - 1] - begin) * SAMPLE_RATE // TOKENS_PER_SECOND
        # The last window: what is left of it was heard already, and no word in it.
        nothing_dropped = all(is_time[cuts[-1] :])
        if last and nothing_dropped and size - heard < SHORTEST_REST_SECONDS * SAMPLE_RATE:
            heard = size
        return spans, min(heard, size) or size

    def _segment(
        self, number: int, seek: int, start: float, end: float, tokens: list[int], attempt: Attempt
    ) -> Segment:
        return Segment(
            id=number,
            seek=seek * 100 // SAMPLE_RATE,
            start=round(start, 3),
            end=round(end, 3),
            text=self._decoder.text(tokens),
            tokens=tokens,
            temperature=attempt.temperature,
            avg_logprob=attempt.avg_logprob,
            compression_ratio=attempt.compression_ratio,
            no_speech_prob=attempt.no_speech_prob,
        )

    def _carry(self, segments: list[Segment], temperature: float) -> None:
        if temperature > _MAX_CARRIED_TEMPERATURE:
            self._context = []
            return
        for segment in segments:
            self._context += segment.tokens
        # More than this can never reach the decoder again.
        self._context = self._context[-self._model.n_text_ctx :]

    def _with_words(
        self,
        segments: list[Segment],
        samples: NDArray[np.float32],
        prompt: list[int],
        language: str,
        offset: float,
    ) -> list[Segment]:
        if not self._options.word_timestamps or self._words is None or not segments:
            return segments
        found = self._words.find(samples, segments, prompt, language, offset)
        return [
            msgspec.structs.replace(segment, words=spoken)
            for segment, spoken in zip(segments, found, strict=True)
        ]


def _likeliest(hearing: Hearing) -> str:
    return max(hearing.languages, key=lambda code: hearing.languages[code])
