"""One sequence on its way through the engine: its tokens, its random stream, its text so far."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.engines.generation.contract import Delta, FinishReason, GenerationRequest
from appliance.engines.generation.delivery import TokenStream
from appliance.engines.generation.detokenizer import Detokenizer
from appliance.engines.generation.sampling import Logits, row_generator, sample
from appliance.engines.generation.stop import StopMatcher


class Sequence:
    """The state of one request. Only the engine thread touches it after its creation.

    ``row`` is its place in the KV cache (-1 outside), ``length`` the tokens it holds there,
    ``granted`` the tokens it may hold, ``last_token`` the newest token, not yet in the cache.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        prompt: NDArray[np.int64],
        stream: TokenStream,
        detokenizer: Detokenizer,
        eos_token_ids: frozenset[int],
        arrival: int,
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.stream = stream
        self.order = (-request.priority, arrival)
        self.row = -1
        self.length = 0
        self.granted = 0
        self.last_token = -1
        self._generator = row_generator(request.sampling.seed)
        self._detokenizer = detokenizer
        self._stop = StopMatcher(request.stop)
        self._eos_token_ids = eos_token_ids
        self._produced = 0
        self._unsent: list[int] = []

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.length >= self.prompt.size

    def next_token(self, logits: Logits) -> int:
        """Choose the next token from ``logits`` [vocab_size]; all logits processing of a row is here.

        Raises EngineError when the logits are not numbers.
        """
        return sample(logits, self.request.sampling, self._generator)

    def accept(self, token_id: int) -> Delta | None:
        """Append ``token_id``; return the delta that is final by now, if there is one.

        A delta with ``finish_reason`` is the last. End of sequence comes before a stop string, a
        stop string before the length.
        """
        self.last_token = token_id
        self._produced += 1
        self._unsent.append(token_id)
        if token_id in self._eos_token_ids:
            text, matched = self._finish_text()
            return self._delta(text, "stop", matched)
        text, matched = self._stop.push(self._detokenizer.push(token_id))
        if matched is not None:
            return self._delta(text, "stop", matched)
        if self._produced >= self.request.max_tokens:
            rest, matched = self._finish_text()
            return self._delta(text + rest, "length" if matched is None else "stop", matched)
        return self._delta(text, None, None) if text else None

    def _finish_text(self) -> tuple[str, str | None]:
        """Return the text that was held back, and the stop string that an unfinished character completed."""
        text, matched = self._stop.push(self._detokenizer.flush())
        return (text, matched) if matched is not None else (text + self._stop.flush(), None)

    def _delta(self, text: str, finish_reason: FinishReason | None, stop_reason: str | None) -> Delta:
        token_ids, self._unsent = self._unsent, []
        return Delta(text=text, token_ids=token_ids, finish_reason=finish_reason, stop_reason=stop_reason)
