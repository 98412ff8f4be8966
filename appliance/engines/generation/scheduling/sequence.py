"""One sequence on its way through the engine: its tokens, its random stream, its text so far."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Delta, GenerationRequest, Logits, TokenLogprob
from appliance.engines.generation.logits.logprobs import token_logprob
from appliance.engines.generation.logits.processing import LogitsProcessor
from appliance.engines.generation.logits.sampling import row_generator, sample
from appliance.engines.generation.scheduling.delivery import Receiver
from appliance.engines.generation.text.sequence_text import SequenceText
from appliance.engines.generation.text.tokenizer import Tokenizer

NO_LOGPROBS: list[TokenLogprob] = []


class Vocabulary(NamedTuple):
    """What a sequence needs to know of its model's tokens."""

    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]
    size: int


class Sequence:
    """The state of one sequence. Only the engine thread touches it after its creation.

    ``row`` is its place in the KV cache (-1 outside), ``length`` the tokens it holds there,
    ``computed`` how many of them, from the first on, were computed as a prompt is (what other
    sequences may share), ``granted`` the tokens it may hold, ``last_token`` the newest token, not
    yet in the cache. ``awaits`` is the sequence whose prompt, still being computed, this one will
    share. ``leader`` is the first sequence of the beam search that this one belongs to. Nothing
    of one that ``has_failed`` stays in the cache.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        prompt: NDArray[np.int64],
        receiver: Receiver,
        vocabulary: Vocabulary,
        arrival: int,
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.receiver = receiver
        self.order = (-request.priority, arrival)
        self.row = -1
        self.length = 0
        self.granted = 0
        self.last_token = -1
        self.awaits: Sequence | None = None
        self.leader: Sequence | None = None
        self.has_failed = False
        self.prompt_scores: list[TokenLogprob | None] = []
        self._generator = row_generator(request.sampling.seed)
        self._vocabulary = vocabulary
        self._text = SequenceText(request, vocabulary.tokenizer, vocabulary.eos_token_ids)
        self._unsent: list[int] = []
        self._unsent_logprobs: list[TokenLogprob] = []

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.length >= self.prompt.size

    @property
    def computed(self) -> int:
        """How many tokens of the prompt are in the cache."""
        return min(self.length, self.prompt.size)

    @functools.cached_property
    def _processor(self) -> LogitsProcessor:
        """Made with the first token: what waits, or is a beam search's member, needs none of its memory."""
        return LogitsProcessor(self.request, self._vocabulary.eos_token_ids, self._vocabulary.size)

    def next_token(self, logits: Logits) -> int:
        """Choose the next token from ``logits`` [vocab_size], which are changed in place.

        Raises EngineError when the logits are not numbers, or the constraint fails.
        """
        request = self.request
        self._processor.process(logits)
        if request.enforced:
            token_id = request.enforced[self._text.produced]
            if not math.isfinite(logits.max()):
                raise EngineError("The model gave logits that are not numbers.")
        else:
            token_id = sample(logits, request.sampling, self._generator)
        if request.logprobs is not None:
            self._unsent_logprobs.append(token_logprob(logits, token_id, request.logprobs))
        return token_id

    def accept(self, token_id: int) -> Delta | None:
        """Append ``token_id``; return the delta that is final by now, if there is one.

        A delta with ``finish_reason`` is the last. Raises EngineError when the constraint fails.
        """
        self.last_token = token_id
        self._unsent.append(token_id)
        text, finish_reason, stop_reason = self._text.push(token_id)
        if finish_reason is None:
            self._processor.accept(token_id)
            if not text:
                return None
        token_ids, self._unsent = self._unsent, []
        logprobs = NO_LOGPROBS
        if self._unsent_logprobs:
            logprobs, self._unsent_logprobs = self._unsent_logprobs, []
        return Delta(
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=self._take_prompt_scores(),
            finish_reason=finish_reason,
            stop_reason=stop_reason,
        )

    def scored(self) -> Delta:
        """Return the only delta of a request for the prompt's log probabilities alone."""
        return Delta(
            text="", token_ids=[], prompt_logprobs=self._take_prompt_scores(), finish_reason="length"
        )

    def _take_prompt_scores(self) -> list[TokenLogprob | None] | None:
        if not self.prompt_scores:
            return None
        scores, self.prompt_scores = self.prompt_scores, []
        return scores
