"""Decode one window of up to 30 s: language, no-speech probability, tokens, and another try when they are poor.

After the transcription of OpenAI's reference implementation (A. Radford et al., "Robust speech
recognition via large-scale weak supervision", 2022, section 4.5): greedy first, then sampling at
rising temperatures while the text repeats itself or is improbable.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from appliance.engines.speech.languages import LANGUAGES
from appliance.engines.speech.library import WhisperModel
from appliance.engines.speech.rules import DecodingRules, Logits

TEMPERATURE_STEP = 0.2
MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
NO_SPEECH_THRESHOLD = 0.6

_CODES = list(LANGUAGES)


class Hearing(msgspec.Struct, frozen=True):
    """What the decoder says of the window before any word: no-speech and language probabilities."""

    no_speech_prob: float
    languages: dict[str, float]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of one window, the end token left out, and the figures they are judged by."""

    tokens: list[int]
    text: str
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float

    @property
    def silent(self) -> bool:
        """Whether the window holds no speech: likely so, and what was heard is improbable."""
        return self.no_speech_prob > NO_SPEECH_THRESHOLD and self.avg_logprob < MIN_AVG_LOGPROB

    @property
    def poor(self) -> bool:
        """Whether the text repeats itself, or is improbable though there is speech."""
        if self.compression_ratio > MAX_COMPRESSION_RATIO:
            return True
        return self.avg_logprob < MIN_AVG_LOGPROB and not self.silent


class WindowDecoder:
    """Decodes windows with one model. ``check`` is called between steps and may raise to stop the work."""

    def __init__(self, model: WhisperModel, check: Callable[[], None]) -> None:
        self._model = model
        self._check = check
        self._rules = DecodingRules(model)
        # A fixed seed: the same audio gives the same text, sampled or not.
        self._random = np.random.default_rng(0)

    def hear(self, samples: NDArray[np.float32]) -> Hearing:
        """Encode the window and look at the first position. ``decode`` works on the window heard last."""
        self._check()
        self._model.encode(samples)
        self._check()
        logits = self._model.decode([self._model.sot], 0)
        probabilities = np.exp(logits - logits.max())
        languages = {"en": 1.0}
        if self._model.multilingual:
            first = self._model.language_token(0)
            scores = probabilities[first : first + self._model.n_languages]
            scores = scores / scores.sum()
            languages = {code: float(score) for code, score in zip(_CODES, scores, strict=False)}
        return Hearing(float(probabilities[self._model.nosp] / probabilities.sum()), languages)

    def decode(self, prompt: list[int], hearing: Hearing, temperature: float, *, max_tokens: int) -> Attempt:
        """Return the best of the attempts from ``temperature`` up; mostly the first one is good."""
        attempts: list[Attempt] = []
        while True:
            attempt = self._attempt(prompt, hearing.no_speech_prob, temperature, max_tokens)
            if not attempt.poor:
                return attempt
            attempts.append(attempt)
            temperature = round(temperature + TEMPERATURE_STEP, 6)
            if temperature > 1.0:
                break
        varied = [attempt for attempt in attempts if attempt.compression_ratio <= MAX_COMPRESSION_RATIO]
        return max(varied or attempts, key=lambda attempt: attempt.avg_logprob)

    def _attempt(
        self, prompt: list[int], no_speech_prob: float, temperature: float, max_tokens: int
    ) -> Attempt:
        model = self._model
        max_tokens = min(max_tokens, model.n_text_ctx - len(prompt))
        tokens: list[int] = []
        logprob = 0.0
        logits = model.decode(prompt, 0)
        while True:
            self._check()
            self._rules.apply(logits, tokens)
            token, token_logprob = self._sample(logits, temperature)
            logprob += token_logprob
            if token == model.eot:
                break
            tokens.append(token)
            if len(tokens) >= max_tokens:
                break
            logits = model.decode([token], len(prompt) + len(tokens) - 1)
        text = self.text(tokens)
        return Attempt(
            tokens=tokens,
            text=text,
            temperature=temperature,
            avg_logprob=logprob / (len(tokens) + 1),
            compression_ratio=compression_ratio(text),
            no_speech_prob=no_speech_prob,
        )

    def _sample(self, logits: Logits, temperature: float) -> tuple[int, float]:
        """Return the next token and its log-probability at temperature 1."""
        highest = int(logits.argmax())
        scores = logits - logits[highest]
        normaliser = float(np.log(np.exp(scores).sum()))
        token = highest
        if temperature > 0:
            # The Gumbel-max trick draws from the softmax without building its cumulative sum.
            token = int((scores / temperature + self._random.gumbel(size=scores.size)).argmax())
        return token, float(scores[token]) - normaliser

    def text(self, tokens: list[int]) -> str:
        """Return the text of ``tokens``, time stamps and other special tokens left out."""
        pieces = [self._model.token_bytes(token) for token in tokens if token < self._model.eot]
        return b"".join(pieces).decode("utf-8", "replace")


def compression_ratio(text: str) -> float:
    """Return how many times zlib makes ``text`` smaller: repetition shows as a high figure. Empty is 1."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data)) if data else 1.0
