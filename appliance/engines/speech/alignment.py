"""When each word was spoken, from the attention of the decoder (dynamic time warping in whisper.cpp).

The alignment is only offered by the library's own decoding loop, on a context loaded for it. So a
window whose words are asked for is decoded once more there, greedily, and its tokens are matched
with those of the transcript; tokens without a partner take the time between their neighbours.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.speech.contract import Segment, Word
from appliance.engines.speech.languages import UNSPACED
from appliance.engines.speech.library import WhisperModel, errors_said

# Times of whisper.cpp are hundredths of a second.
_TICKS_PER_SECOND = 100.0
# How long a word can last at most.
SHORTEST_CEILING_SECONDS = 0.25
SECONDS_PER_CHARACTER = 0.08
_PUNCTUATION = "\"'“”‘’«».,!?:;)]}、。，！？：；…"


class _Piece(msgspec.Struct):
    """A word in the making: its bytes and the time at which each of its tokens ended."""

    text: bytes
    times: list[float]


class WordAligner:
    """Aligns words on a second context of the model; costs its memory again until ``close``."""

    def __init__(
        self,
        model: WhisperModel,
        path: Path,
        alignment: str | None,
        *,
        threads: int,
        check: Callable[[], None],
    ) -> None:
        """Load the context. Raises EngineError when the library cannot align this model."""
        import _pywhispercpp

        self._library: Any = _pywhispercpp
        self._model = model
        self._threads = threads
        self._check = check
        params = self._library.whisper_context_default_params()
        params.use_gpu = False
        # Fused attention keeps no weights to align by.
        params.flash_attn = False
        params.dtw_token_timestamps = True
        params.dtw_aheads_preset = _preset(self._library, alignment)
        if alignment is None:
            params.dtw_n_top = 2
        with errors_said() as errors:
            self._context = self._library.whisper_init_from_file_with_params(str(path), params)
        # After an error the context may be null: freeing that is all that may be done with it.
        if errors or self._library.whisper_n_vocab(self._context) != model.n_vocab:
            self.close()
            raise EngineError("whisper.cpp could not load the model for word times")

    def close(self) -> None:
        """Free the context."""
        context, self._context = self._context, None
        if context is not None:
            self._library.whisper_free(context)

    def words(
        self,
        samples: NDArray[np.float32],
        segments: list[Segment],
        prompt: list[int],
        offset: float,
        language: str,
        *,
        translate: bool,
    ) -> list[list[Word]]:
        """Return the words of each segment of a window that begins ``offset`` seconds into the audio.

        ``prompt`` is what the window was decoded after. Word times lie inside their segment.
        """
        self._run(samples, self._context_tokens(prompt), language, translate=translate)
        self._check()
        heard, times = self._heard()
        spoken = [token for segment in segments for token in segment.tokens if token < self._model.eot]
        matched = _match(spoken, heard, times)
        words: list[list[Word]] = []
        position = 0
        for segment in segments:
            tokens = [token for token in segment.tokens if token < self._model.eot]
            ends = [
                None if time is None else time + offset for time in matched[position : position + len(tokens)]
            ]
            position += len(tokens)
            pieces = self._pieces(tokens, _fill(ends, segment), spaced=language not in UNSPACED)
            words.append(_words(pieces, segment))
        return words

    def _context_tokens(self, prompt: list[int]) -> list[int]:
        """Return the part of the prompt that is earlier text: what stands before start-of-transcript."""
        return prompt[1 : prompt.index(self._model.sot)]

    def _run(
        self, samples: NDArray[np.float32], context: list[int], language: str, *, translate: bool
    ) -> None:
        pw = self._library
        # A fresh structure for every run: settings stick to it.
        params = pw.whisper_full_default_params(pw.whisper_sampling_strategy.WHISPER_SAMPLING_GREEDY)
        params.n_threads = self._threads
        params.language = language
        params.translate = translate
        params.temperature = 0.0
        params.temperature_inc = 0.0
        params.suppress_nst = True
        params.no_context = True
        params.logprob_thold = -1e9
        params.print_progress = False
        if context:
            params.prompt_tokens = context
        begun: list[bool] = []

        def begin(_context: object) -> bool:
            # The first window only: what it left over belongs to the next one.
            begun.append(True)
            return len(begun) == 1

        stopped: list[BaseException] = []

        def aborted() -> bool:
            try:
                self._check()
            except BaseException as error:  # noqa: BLE001 - raised again after the library returns
                stopped.append(error)
                return True
            return False

        pw.assign_encoder_begin_callback(params, begin)
        pw.assign_abort_callback(params, aborted)
        pw.whisper_full(self._context, params, samples, samples.size)
        if stopped:
            raise stopped[0]

    def _heard(self) -> tuple[list[int], list[float]]:
        """Return the text tokens of the run and when each was spoken, in seconds of the window."""
        pw, tokens, times = self._library, [], []
        for segment in range(pw.whisper_full_n_segments(self._context)):
            for index in range(pw.whisper_full_n_tokens(self._context, segment)):
                data = pw.whisper_full_get_token_data(self._context, segment, index)
                if data.id < self._model.eot and data.t_dtw >= 0:
                    tokens.append(int(data.id))
                    times.append(data.t_dtw / _TICKS_PER_SECOND)
        return tokens, times

    def _pieces(self, tokens: list[int], ends: list[float], *, spaced: bool) -> list[_Piece]:
        """Join tokens to words: at spaces, or where a language writes none, at whole characters."""
        pieces: list[_Piece] = []
        for token, end in zip(tokens, ends, strict=True):
            text = self._model.token_bytes(token)
            begins = text.startswith(b" ") if spaced else _is_whole(pieces[-1].text) if pieces else True
            is_mark = not text.decode("utf-8", "replace").strip(_PUNCTUATION + " ")
            if not pieces or (begins and not is_mark):
                pieces.append(_Piece(text, [end]))
                continue
            pieces[-1].text += text
            if not is_mark:
                pieces[-1].times.append(end)
        return pieces


def _preset(library: Any, alignment: str | None) -> int:
    name = "N_TOP_MOST" if alignment is None else alignment.upper().replace(".", "_").replace("-", "_")
    preset = getattr(library, f"WHISPER_AHEADS_{name}", None)
    if preset is None:
        preset = getattr(library.whisper_alignment_heads_preset, f"WHISPER_AHEADS_{name}", None)
    if preset is None:
        raise EngineError(f"whisper.cpp knows no alignment heads called {alignment!r}")
    return preset  # type: ignore[no-any-return]


def _is_whole(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _match(spoken: list[int], heard: list[int], times: list[float]) -> list[float | None]:
    """Return the time of each spoken token whose like was heard."""
    matched: list[float | None] = [None] * len(spoken)
    blocks = difflib.SequenceMatcher(None, spoken, heard, autojunk=False).get_matching_blocks()
    for block in blocks:
        matched[block.a : block.a + block.size] = times[block.b : block.b + block.size]
    return matched


def _fill(ends: list[float | None], segment: Segment) -> list[float]:
    """Give tokens without a time one between their neighbours; times never run back or leave the segment."""
    known = [(index, time) for index, time in enumerate(ends) if time is not None]
    if not known:
        return [float(time) for time in np.linspace(segment.start, segment.end, len(ends) + 1)[1:]]
    indexes, times = zip(*known, strict=True)
    if known[0][0] > 0:
        indexes, times = (-1, *indexes), (segment.start, *times)
    if known[-1][0] < len(ends) - 1:
        indexes, times = (*indexes, len(ends) - 1), (*times, segment.end)
    filled = np.interp(np.arange(len(ends)), indexes, times)
    return [float(time) for time in np.maximum.accumulate(np.clip(filled, segment.start, segment.end))]


def _words(pieces: list[_Piece], segment: Segment) -> list[Word]:
    """Return the pieces as words: each ends at its last token and begins where the one before ended.

    After a pause that would be too early, so a word lasts no longer than slow speech would take.
    """
    words: list[Word] = []
    previous = segment.start
    for piece in pieces:
        text = piece.text.decode("utf-8", "replace").strip()
        if not text:
            continue
        end = max(piece.times[-1], previous)
        start = max(previous, end - SHORTEST_CEILING_SECONDS - SECONDS_PER_CHARACTER * len(text))
        words.append(Word(word=text, start=round(start, 3), end=round(end, 3)))
        previous = end
    return words
