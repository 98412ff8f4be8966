"""Continuous batching: one thread that runs every sequence of one model, step by step.

A step: forget cancelled sequences, admit waiting ones, prefill one chunk of one prompt, decode one
token for all running sequences, hand the deltas to the event loops. A sequence's tokens do not
depend on what runs beside it: prompts are cut where it makes no difference, and the graph's
kernels compute every row of a batch as if it were alone.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from appliance.engines.errors import EngineError
from appliance.engines.generation.contract import Answer, Beams, GenerationRequest, Logits
from appliance.engines.generation.logits.logprobs import token_logprob
from appliance.engines.generation.scheduling.admission import Admission
from appliance.engines.generation.scheduling.beam_search import BeamGroup
from appliance.engines.generation.scheduling.delivery import BeamAnswers, Outbox, Receiver, TokenStream
from appliance.engines.generation.scheduling.kv_cache import KvCache
from appliance.engines.generation.scheduling.model import DECODE_ROWS, DecoderModel, piece_of
from appliance.engines.generation.scheduling.rows import RowTable
from appliance.engines.generation.scheduling.sequence import Sequence, Vocabulary
from appliance.engines.generation.scheduling.waiting import Submission, WaitingQueue
from appliance.errors import OverloadedError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BatchScheduler:
    """Runs generation requests on ``model``; ``max_queue`` requests may wait beyond those with a row."""

    def __init__(
        self,
        model: DecoderModel,
        rows: RowTable,
        cache: KvCache,
        vocabulary: Vocabulary,
        *,
        context_length: int,
        max_queue: int,
    ) -> None:
        self._model = model
        self._rows = rows
        self._cache = cache
        self._vocabulary = vocabulary
        self._admission = Admission(rows, context_length=context_length, vocab_size=vocabulary.size)
        self._max_queue = max_queue
        self._arrivals = itertools.count()
        self._outbox = Outbox()
        self._oldest_next = False
        # Beam searches by their first member.
        self._groups: dict[Sequence, BeamGroup] = {}
        self._changed = threading.Condition()
        # Guarded by the condition: who waits, and whether the end has come.
        self._waiting = WaitingQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that does the work is there."""
        return self._thread.is_alive()

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a row."""
        with self._changed:
            return len(self._waiting)

    @property
    def running_rows(self) -> int:
        """Sequences that have a row: prefilling, decoding or waiting for memory."""
        return len(self._rows.admitted)

    def submit(self, requests: list[GenerationRequest]) -> list[TokenStream]:
        """Queue ``requests``, which count as one; call it on the event loop that will iterate the answers.

        Raises InputRefusedError when one of them can never run, OverloadedError when the queue is
        full, EngineError after ``close``.
        """
        for request in requests:
            self._admission.check(request)
        streams = [TokenStream(len(request.prompt), self._wake) for request in requests]
        sequences = [self._sequence(*pair) for pair in zip(requests, streams, strict=True)]
        if sequences:
            self._queue(Submission(sequences))
        return streams

    def search(self, request: GenerationRequest, beams: Beams) -> BeamAnswers:
        """Queue a beam search; call it on the event loop that will await the answers. Raises as ``submit``."""
        self._admission.check(request, beams)
        answers = BeamAnswers(len(request.prompt), self._wake)
        members = [self._sequence(request, answers) for _ in range(beams.width)]
        for member in members:
            member.leader = members[0]
        self._queue(Submission(members, BeamGroup(request, beams, members, self._vocabulary)))
        return answers

    def close(self) -> None:
        """Stop after the current step; every request that has not finished ends with EngineError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _sequence(self, request: GenerationRequest, receiver: Receiver) -> Sequence:
        prompt = np.array(request.prompt, dtype=np.int64)
        return Sequence(
            request,
            prompt=prompt,
            receiver=receiver,
            vocabulary=self._vocabulary,
            arrival=next(self._arrivals),
        )

    def _queue(self, submission: Submission) -> None:
        with self._changed:
            if self._closing:
                raise EngineError("The model is being unloaded.", status=503)
            if len(self._waiting) >= self._max_queue + self._rows.free:
                raise OverloadedError("The model's queue is full. Please try again later.")
            self._waiting.push(submission)
            self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self._step()
                except Exception:
                    # A step fails its own requests; what arrives here is a fault of the scheduler itself.
                    logger.exception("generation step failed")
                    self._fail_everything()
        finally:
            self._end()

    def _end(self) -> None:
        """Tell everybody who still waits that the engine is gone."""
        with self._changed:
            self._closing = True
            left = self._take_everything()
        for sequence in left:
            self._outbox.post(sequence.receiver, EngineError("The model is being unloaded.", status=503))
        self._outbox.flush()

    def _fail_everything(self) -> None:
        """Start again with nothing. Who waits fails too: the next step might end for them as this one did."""
        with self._changed:
            left = self._take_everything()
        for sequence in left:
            self._outbox.post(sequence.receiver, EngineError("The generation engine failed."))
        for clean in (self._rows.reset, self._outbox.flush):
            try:
                clean()
            except Exception:
                logger.exception("the generation engine could not be set back")

    def _take_everything(self) -> list[Sequence]:
        """Empty the queue; return the waiting and the admitted sequences. Call it under the condition."""
        self._groups.clear()
        return self._rows.admitted + self._waiting.clear()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False when it is to close."""
        with self._changed:
            while not self._closing and not self._rows.admitted and self._waiting.first() is None:
                self._changed.wait()
            return not self._closing

    def _step(self) -> None:
        self._forget_cancelled()
        self._resume()
        self._admit()
        sequence = self._next_prefill()
        if sequence is not None:
            self._prefill(sequence)
            self._outbox.flush()  # a first token does not wait for anything
        self._decode()
        if not self._rows.running:
            self._outbox.flush()

    def _forget_cancelled(self) -> None:
        for sequence in reversed(self._rows.admitted):
            if sequence.receiver.cancelled:
                self._release(sequence)
        with self._changed:
            self._waiting.forget_cancelled()

    def _next_prefill(self) -> Sequence | None:
        """Return whose prompt goes on: by turns the oldest and the shortest of the highest priority.

        So short prompts do not wait for a long one to end, and a long one never waits for ever. Who
        will share what another is still computing waits for that.
        """
        prefilling = [
            sequence
            for sequence in self._rows.admitted
            if not sequence.prefilled and self._computes(sequence) and self._rows.share(sequence)
        ]
        if not prefilling:
            return None
        highest = max(sequence.request.priority for sequence in prefilling)
        prefilling = [sequence for sequence in prefilling if sequence.request.priority == highest]
        self._oldest_next = not self._oldest_next
        return (
            prefilling[0] if self._oldest_next else min(prefilling, key=lambda it: it.prompt.size - it.length)
        )

    def _computes(self, sequence: Sequence) -> bool:
        """Return whether the sequence computes its prompt itself: of a beam search only the first does, once."""
        if sequence.leader is None:
            return True
        return sequence.leader is sequence and not self._groups[sequence].has_started

    def _paused(self) -> list[Sequence]:
        rows = self._rows
        # A beam search has all its memory from the start: a member that does not run rests.
        return [
            sequence
            for sequence in rows.admitted
            if sequence.leader is None and sequence.prefilled and not rows.is_running(sequence)
        ]

    def _resume(self) -> None:
        for sequence in self._paused():
            if self._rows.grant(sequence, sequence.length + 1):
                self._rows.start(sequence)

    def _admit(self) -> None:
        """Give waiting sequences rows, in their order, unless admitted ones wait for memory.

        What is cached is copied meanwhile, so nobody is kept from the queue.
        """
        while not self._paused():
            with self._changed:
                submission = self._waiting.first()
            if submission is None:
                return
            count = self._admit_of(submission)
            if not count:
                return
            with self._changed:
                self._waiting.took(submission, count)

    def _admit_of(self, submission: Submission) -> int:
        """Give the next sequence of ``submission`` a row, or all of a beam search; return how many got one."""
        if submission.group is None:
            sequence = submission.sequences[0]
            return int(self._rows.admit(sequence, sequence.prompt.size))
        members = submission.group.members
        request = members[0].request
        if not self._rows.admit_group(members, len(request.prompt) + request.max_tokens):
            return 0
        self._groups[members[0]] = submission.group
        return len(members)

    def _prefill(self, sequence: Sequence) -> None:
        """Run the next chunk of a prompt; after the last one the sequence joins the decode batch."""
        model, start, priority = self._model, sequence.length, sequence.request.priority
        scored = sequence.request.prompt_logprobs
        longest = model.chunk_tokens if scored is None else model.score_tokens
        chunk = sequence.prompt[start : start + piece_of(sequence.prompt.size - start, longest)]
        # The event loops work on it while the model runs: before that they would only hold up this thread.
        self._outbox.flush()
        try:
            if scored is not None:
                logits = model.score(sequence.row, chunk, start, priority=priority)
                _score(sequence, logits, start, scored)
                logits = logits[-1]
            else:
                logits = model.prefill(sequence.row, chunk, start, priority=priority)
        except Exception:
            logger.exception("prefill failed")
            self._fail([sequence], EngineError("The model failed on this prompt."))
            return
        sequence.length += chunk.size
        if not sequence.prefilled:
            return
        if sequence.request.max_tokens == 0:
            self._outbox.post(sequence.receiver, sequence.scored())
            self._release(sequence)
            return
        self._rows.start(sequence)
        if sequence.leader is not None:
            self._collect(sequence, logits)
            self._advance_groups()
        elif self._advance(sequence, logits):
            self._release(sequence)

    def _decode(self) -> None:
        """Run one token of every running sequence that has memory for it."""
        for sequence in self._rows.running:
            if not self._rows.grant(sequence, sequence.length + 1):
                self._rows.pause(sequence)
        running = self._rows.running
        ended: list[Sequence] = []
        for start in range(0, len(running), DECODE_ROWS):
            ended += self._decode_rows(running[start : start + DECODE_ROWS])
        for sequence in sorted(
            ended, key=lambda each: -each.row
        ):  # the last rows first: see RowTable.release
            self._release(sequence)
        if self._groups:
            self._advance_groups()

    def _decode_rows(self, sequences: list[Sequence]) -> list[Sequence]:
        """Run one token of neighbouring rows; return those that ended with it."""
        self._outbox.flush()
        try:
            logits = self._model.decode(
                sequences[0].row,
                [sequence.last_token for sequence in sequences],
                [sequence.length for sequence in sequences],
                priority=max(sequence.request.priority for sequence in sequences),
            )
        except Exception:
            logger.exception("decode failed")
            for sequence in sequences:
                self._post_failure(sequence, EngineError("The model failed while it generated."))
            return sequences
        ended: list[Sequence] = []
        for sequence, row_logits in zip(sequences, logits, strict=True):
            sequence.length += 1
            if sequence.leader is not None:
                self._collect(sequence, row_logits)
            elif self._advance(sequence, row_logits):
                ended.append(sequence)
        return ended

    def _advance(self, sequence: Sequence, logits: Logits) -> bool:
        """Choose and deliver the next token of ``sequence``; return whether that was the last."""
        delta = _attempt(lambda: sequence.accept(sequence.next_token(logits)))
        if delta is None:
            return False
        if isinstance(delta, EngineError):
            self._post_failure(sequence, delta)
            return True
        self._outbox.post(sequence.receiver, delta)
        return delta.finish_reason is not None

    def _collect(self, sequence: Sequence, logits: Logits) -> None:
        """Give a beam search the logits of one of its hypotheses."""
        group = self._groups[sequence.leader or sequence]
        failure = _attempt(lambda: group.collect(sequence, logits))
        if failure is not None:
            group.failure = failure

    def _advance_groups(self) -> None:
        """Let the beam searches choose that were given logits."""
        for group in [group for group in self._groups.values() if group.is_ready]:
            failure = group.failure or _attempt(lambda: group.advance(self._rows, self._cache))  # noqa: B023
            if failure is not None:
                group.members[0].has_failed = True
                self._end_group(group, failure)
            elif group.answers is not None:
                self._end_group(group, group.answers)

    def _end_group(self, group: BeamGroup, outcome: list[Answer] | EngineError) -> None:
        self._outbox.post(group.members[0].receiver, outcome)
        self._groups.pop(group.members[0], None)
        for member in sorted(group.members, key=lambda each: -each.row):
            self._release(member)

    def _fail(self, sequences: list[Sequence], error: EngineError) -> None:
        for sequence in sequences:
            self._post_failure(sequence, error)
            self._release(sequence)

    def _post_failure(self, sequence: Sequence, error: EngineError) -> None:
        sequence.has_failed = True
        self._outbox.post(sequence.receiver, error)

    def _release(self, sequence: Sequence) -> None:
        """Free the row of a sequence that has ended, and all rows of its beam search."""
        leader = sequence.leader
        if leader is not None and (group := self._groups.pop(leader, None)) is not None:
            for member in sorted(group.members, key=lambda each: -each.row):
                self._release(member)
        elif sequence.row >= 0:
            # What the model made of a prompt that failed is not for others.
            self._rows.release(sequence, keep=leader in (None, sequence) and not sequence.has_failed)
            if sequence.request.prompt_logprobs is not None:
                self._model.forget_scores()


def _score(sequence: Sequence, logits: Logits, start: int, best: int) -> None:
    """Keep the log probabilities of the prompt's tokens behind those of a chunk that began at ``start``."""
    if not sequence.prompt_scores:
        sequence.prompt_scores.append(None)
    following = sequence.prompt[start + 1 : start + 1 + len(logits)]
    for row, token_id in zip(logits, following, strict=False):
        sequence.prompt_scores.append(token_logprob(row, int(token_id), best, ranked=True))


def _attempt(work: Callable[[], T]) -> T | EngineError:
    """Return what ``work`` returns, or the error to tell the caller; a fault of ours goes to the log."""
    try:
        return work()
    except EngineError as error:
        return error
    except Exception:
        logger.exception("choosing a token failed")
        return EngineError("The generation engine failed.")
