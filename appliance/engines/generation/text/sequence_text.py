"""The text of one sequence as its tokens come: what is final, and what ends it."""

from __future__ import annotations

from typing import NamedTuple

from appliance.engines.generation.contract import FinishReason, GenerationRequest
from appliance.engines.generation.text.stop import StopMatcher
from appliance.engines.generation.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """The text that a token made final, and the end of the sequence if it was the last."""

    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class SequenceText:
    """Decodes the tokens of one request and finds its end.

    In this order: end of sequence, a stop token, a stop string, the length. The first three count
    only once the request's minimum of tokens is there; enforced tokens end where they end.
    """

    def __init__(
        self, request: GenerationRequest, tokenizer: Tokenizer, eos_token_ids: frozenset[int]
    ) -> None:
        self._request = request
        # A constraint that is fulfilled allows nothing but the end of the sequence, so that always counts.
        self._constrained = request.constraint is not None
        self._eos_token_ids = frozenset() if request.ignore_eos and not self._constrained else eos_token_ids
        self._detokenizer = tokenizer.detokenizer(
            skip_special=request.skip_special_tokens,
            spaces_between_special=request.spaces_between_special_tokens,
        )
        self._stop = StopMatcher(request.stop, included=request.include_stop)
        self.produced = 0

    def push(self, token_id: int) -> Piece:
        """Take the next token."""
        request = self._request
        self.produced += 1
        if request.enforced:
            return self._push_enforced(token_id)
        may_stop = self.produced >= request.min_tokens
        if (may_stop or self._constrained) and token_id in self._eos_token_ids:
            # The end of sequence is no text, unless a caller that asked for stops wants to see them.
            shown = request.include_stop and bool(request.stop or request.stop_token_ids)
            return self._ended(token_id, shown=shown, reason=None)
        if may_stop and token_id in request.stop_token_ids:
            return self._ended(token_id, shown=request.include_stop, reason=token_id)
        text, matched = self._stop.push(self._detokenizer.push(token_id), search=may_stop)
        if matched is not None:
            return Piece(text, "stop", matched)
        if self.produced >= request.max_tokens:
            rest, matched = self._rest(search=may_stop)
            return Piece(text + rest, "length" if matched is None else "stop", matched)
        return Piece(text)

    def _push_enforced(self, token_id: int) -> Piece:
        if self.produced >= len(self._request.enforced):  # its end of sequence: no text
            return Piece(self._detokenizer.flush(), "stop")
        text = self._detokenizer.push(token_id)
        if self.produced >= self._request.max_tokens:
            return Piece(text + self._detokenizer.flush(), "length")
        return Piece(text)

    def _ended(self, token_id: int, *, shown: bool, reason: int | None) -> Piece:
        text, matched = self._stop.push(self._detokenizer.push(token_id)) if shown else ("", None)
        if matched is not None:
            return Piece(text, "stop", matched)
        rest, matched = self._rest(search=True)
        return Piece(text + rest, "stop", reason if matched is None else matched)

    def _rest(self, *, search: bool) -> tuple[str, str | None]:
        """Return the text that was held back, and the stop string that an unfinished character completed."""
        text, matched = self._stop.push(self._detokenizer.flush(), search=search)
        return (text, matched) if matched is not None else (text + self._stop.flush(), None)
