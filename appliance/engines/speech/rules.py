"""Which token may come next: Whisper's suppressed tokens and its rules for time stamps.

After the decoding of OpenAI's reference implementation: text and time stamps form pairs, times never
run back, the first token is a time, and a time is forced where it is likelier than any word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engines.speech.library import WhisperModel

# A second is 50 time tokens; speech starts within the first one of a window.
TOKENS_PER_SECOND = 50
_MAX_INITIAL_TOKENS = TOKENS_PER_SECOND

# Marks of captions that are no speech: brackets, music, speaker dashes.
_MARKS = [
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("'),
    *("((", "))", "(((", ")))", "[[", "]]", "{{", "}}", "♪♪", "♪♪♪"),
    *"♩♪♫♬♭♮♯",
]
_WORD_START_MARKS = [" -", " '"]

Logits = NDArray[np.float32]


class DecodingRules:
    """The rules for one model; ``apply`` masks logits in place."""

    def __init__(self, model: WhisperModel) -> None:
        self._model = model
        never = {model.sot, model.solm, model.prev, model.nosp, model.no_timestamps}
        never |= {model.translate, model.transcribe}
        never |= {model.language_token(index) for index in range(model.n_languages)}
        by_bytes = {model.token_bytes(token): token for token in range(model.eot)}
        never |= _caption_marks(by_bytes)
        self._never: NDArray[Any] = np.array(sorted(never), dtype=np.int64)

    def apply(self, logits: Logits, sampled: list[int]) -> None:
        """Set to -inf what may not follow ``sampled``, the tokens of this window so far."""
        model, begin = self._model, self._model.timestamp_begin
        logits[self._never] = -np.inf
        if not sampled:
            logits[:begin] = -np.inf
            logits[begin + _MAX_INITIAL_TOKENS + 1 :] = -np.inf
            return
        after_time = sampled[-1] >= begin
        if after_time and (len(sampled) < 2 or sampled[-2] >= begin):
            logits[begin:] = -np.inf
        elif after_time:
            logits[: model.eot] = -np.inf
        times = [token for token in sampled if token >= begin]
        if times:
            # A segment has a length, so the next time is later, except as the second of a pair.
            pair_open = after_time and len(sampled) >= 2 and sampled[-2] < begin
            logits[begin : times[-1] + (0 if pair_open else 1)] = -np.inf
        if _time_is_likeliest(logits, begin):
            logits[:begin] = -np.inf


def _time_is_likeliest(logits: Logits, begin: int) -> bool:
    """Whether all time stamps together are likelier than the likeliest other token."""
    times = logits[begin:]
    highest = float(times.max())
    if highest == -np.inf:
        return False
    together = highest + float(np.log(np.exp(times - highest).sum()))
    return together > float(logits[:begin].max())


def _caption_marks(by_bytes: dict[bytes, int]) -> set[int]:
    tokens = set()
    for mark in _MARKS:
        for text in (mark.encode(), b" " + mark.encode()):
            if text in by_bytes:
                tokens.add(by_bytes[text])
            elif "♩" <= mark[0] <= "♯":
                # Music notes are several tokens; they all start alike.
                longest = next(text[:size] for size in range(len(text), 0, -1) if text[:size] in by_bytes)
                if len(longest) > 1:
                    tokens.add(by_bytes[longest])
    return tokens | {by_bytes[mark.encode()] for mark in _WORD_START_MARKS if mark.encode() in by_bytes}
