"""Beam search over the rows of the KV cache: the hypotheses are the rows of one group.

As vLLM 0.5 does it (vllm/engine/output_processor/single_step.py, ``_process_sequence_group_outputs``):
every step takes the 2 × width best continuations of all hypotheses; those that end are put aside
with their score, the best others go on. The score of a hypothesis is Σ logprob / length **
length_penalty, where length counts prompt and output, the end of sequence not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import (
    Answer,
    Beams,
    FinishReason,
    GenerationRequest,
    Logits,
    TokenLogprob,
)
from appliance.engines.generation.logits.logprobs import best, log_sum_exp
from appliance.engines.generation.logits.processing import LogitsProcessor
from appliance.engines.generation.scheduling.kv_cache import KvCache
from appliance.engines.generation.scheduling.rows import RowTable
from appliance.engines.generation.scheduling.sequence import Sequence, Vocabulary
from appliance.engines.generation.text.sequence_text import Piece, SequenceText


class Hypothesis:
    """One beginning of an answer and the member whose row holds it; ``rank`` counts the better ones."""

    def __init__(self, member: Sequence, processor: LogitsProcessor, rank: int) -> None:
        self.member = member
        self.rank = rank
        self.processor = processor
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.cumulative = 0.0


class _Candidate(NamedTuple):
    cumulative: float
    parent: Hypothesis
    logprob: TokenLogprob


class BeamGroup:
    """One beam search. ``members`` are its sequences, the first of which computes the prompt for all.

    The scheduler admits the members together, gives ``collect`` the logits of every hypothesis of a
    step, and calls ``advance`` after the last. ``answers`` is the result when it is not None.
    """

    def __init__(
        self,
        request: GenerationRequest,
        beams: Beams,
        members: list[Sequence],
        vocabulary: Vocabulary,
    ) -> None:
        self.members = members
        self.answers: list[Answer] | None = None
        self.failure: EngineError | None = None
        self.has_started = False
        # Whether logits of this step have been collected.
        self.is_ready = False
        self._request = request
        self._beams = beams
        self._vocabulary = vocabulary
        self._prompt_tokens = len(request.prompt)
        leader = members[0]
        processor = LogitsProcessor(request, vocabulary.eos_token_ids, vocabulary.size)
        self._hypotheses = [Hypothesis(leader, processor, 0)]
        # The best that have ended, at most ``width``, best first, each with its score.
        self._finished: list[tuple[float, Answer]] = []
        self._candidates: list[_Candidate] = []

    def collect(self, member: Sequence, logits: Logits) -> None:
        """Take the best continuations of the member's hypothesis. Raises EngineError."""
        self.has_started = self.is_ready = True
        hypothesis = next(each for each in self._hypotheses if each.member is member)
        hypothesis.processor.process(logits)
        total = log_sum_exp(logits)
        ids = best(logits, max(2 * self._beams.width, self._request.logprobs or 0))
        ranked = [(int(token_id), float(logits[token_id]) - total) for token_id in ids]
        top = tuple(ranked[: self._request.logprobs or 0])
        for token_id, value in ranked[: 2 * self._beams.width]:
            if value == -np.inf:
                break
            shown = TokenLogprob(token_id, value, top)
            self._candidates.append(_Candidate(hypothesis.cumulative + value, hypothesis, shown))

    def advance(self, rows: RowTable, cache: KvCache) -> None:
        """Choose the hypotheses of the next step and put them into rows. Raises EngineError."""
        width = self._beams.width
        # Equal ones: the better parent first, then the lower token id, so that the same request gives the same.
        ranked = sorted(self._candidates, key=lambda each: (-each.cumulative, each.parent.rank))[: 2 * width]
        self._candidates = []
        self.is_ready = False
        chosen: list[_Candidate] = []
        for candidate in ranked:
            piece = self._ending(candidate)
            if piece.finish_reason is None:
                if len(chosen) < width:
                    chosen.append(candidate)
            else:
                self._finish(candidate, piece.finish_reason, piece.stop_reason)
        if not chosen or self._is_over(chosen[0].cumulative, len(chosen[0].parent.token_ids) + 1):
            if not self._finished:
                raise EngineError("The beam search found no answer.")
            self.answers = [answer for _, answer in self._finished]
            return
        self._continue(chosen, rows, cache)

    def _continue(self, chosen: list[_Candidate], rows: RowTable, cache: KvCache) -> None:
        """Give every chosen candidate a member: its parent's to the first, free ones to the others."""
        parents = {id(candidate.parent.member) for candidate in chosen}
        free = [member for member in self.members if id(member) not in parents]
        hypotheses: list[Hypothesis] = []
        for candidate in chosen:
            parent, token_id = candidate.parent, candidate.logprob.token_id
            member = parent.member
            if id(member) in parents:
                parents.remove(id(member))
            else:
                member = self._copied(member, free.pop(), rows, cache)
            hypothesis = Hypothesis(member, parent.processor.fork(), len(hypotheses))
            hypothesis.token_ids = [*parent.token_ids, token_id]
            hypothesis.logprobs = [*parent.logprobs, candidate.logprob]
            hypothesis.cumulative = candidate.cumulative
            hypothesis.processor.accept(token_id)
            member.last_token = token_id
            hypotheses.append(hypothesis)
        for member in free:  # fewer hypotheses than before: their rows rest, with the prompt alone
            if rows.is_running(member):
                member.length = self._prompt_tokens
                rows.pause(member)
        self._hypotheses = hypotheses

    def _copied(self, parent: Sequence, member: Sequence, rows: RowTable, cache: KvCache) -> Sequence:
        """Put the parent's cached tokens into the row of ``member`` and make it run."""
        if not rows.is_running(member):
            rows.start(member)
        # A member that ran before has the prompt already.
        cache.copy(parent.row, member.row, parent.length, min(member.length, self._prompt_tokens))
        member.length = parent.length
        return member

    def _ending(self, candidate: _Candidate) -> Piece:
        """Return how the candidate's last token ends it, if it does."""
        request, token_id = self._request, candidate.logprob.token_id
        produced = len(candidate.parent.token_ids) + 1
        is_eos = token_id in self._vocabulary.eos_token_ids and not request.ignore_eos
        if request.stop or is_eos or token_id in request.stop_token_ids or produced >= request.max_tokens:
            return self._text(candidate)[1]
        return Piece("")

    def _text(self, candidate: _Candidate) -> tuple[str, Piece]:
        """Return the candidate's whole text and its last token's piece."""
        text = SequenceText(self._request, self._vocabulary.tokenizer, self._vocabulary.eos_token_ids)
        parts: list[str] = []
        piece = Piece("")
        for token_id in [*candidate.parent.token_ids, candidate.logprob.token_id]:
            piece = text.push(token_id)
            parts.append(piece.text)
        return "".join(parts), piece

    def _finish(
        self, candidate: _Candidate, finish_reason: FinishReason, stop_reason: str | int | None
    ) -> None:
        """Keep a candidate that has ended, if it is among the best."""
        token_ids = [*candidate.parent.token_ids, candidate.logprob.token_id]
        score = self._score(
            candidate.cumulative, len(token_ids) - (token_ids[-1] in self._vocabulary.eos_token_ids)
        )
        if len(self._finished) == self._beams.width and score <= self._finished[-1][0]:
            return
        text, _ = self._text(candidate)
        answer = Answer(
            text=text,
            token_ids=token_ids,
            logprobs=[*candidate.parent.logprobs, candidate.logprob],
            prompt_logprobs=self.members[0].prompt_scores or None,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            cumulative_logprob=candidate.cumulative,
        )
        self._finished.append((score, answer))
        self._finished.sort(key=lambda each: -each[0])  # of equal ones the earlier is better
        del self._finished[self._beams.width :]

    def _score(self, cumulative: float, output_tokens: int) -> float:
        return float(cumulative / (self._prompt_tokens + output_tokens) ** self._beams.length_penalty)

    def _is_over(self, best_cumulative: float, output_tokens: int) -> bool:
        """Return whether no running hypothesis is wanted any more."""
        width, rule = self._beams.width, self._beams.early_stopping
        if len(self._finished) < width:
            return False
        if rule is True:
            return True
        worst = self._finished[-1][0]
        if rule == "never" and self._beams.length_penalty > 0:
            output_tokens = self._request.max_tokens  # the longest has the best score of one sum
        return self._score(best_cumulative, output_tokens) <= worst
