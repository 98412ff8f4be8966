"""Continuous batching: one thread that runs every sequence of one model, step by step.

A step: forget cancelled sequences, admit a waiting one, prefill one chunk of one prompt, decode one
token for all running sequences, hand the deltas to the event loops. A sequence's tokens do not
depend on what runs beside it: prompts are always cut at the same places, and the graph's kernels
compute every row of a batch as if it were alone.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading

import numpy as np
from numpy.typing import NDArray

from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.generation.contract import GenerationRequest
from appliance.engines.generation.delivery import Outbox, TokenStream
from appliance.engines.generation.model import CHUNK_TOKENS, DecoderModel
from appliance.engines.generation.rows import RowTable
from appliance.engines.generation.sampling import Logits
from appliance.engines.generation.sequence import Sequence
from appliance.engines.generation.tokenizer import Tokenizer
from appliance.errors import OverloadedError

logger = logging.getLogger(__name__)

# Stop strings are searched after every token, so their number costs everybody time.
MAX_STOPS = 128
MAX_STOP_CHARACTERS = 4096


class BatchScheduler:
    """Runs generation requests on ``model``; ``max_queue`` requests may wait beyond those with a row."""

    def __init__(
        self,
        model: DecoderModel,
        rows: RowTable,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: frozenset[int],
        context_length: int,
        vocab_size: int,
        max_queue: int,
    ) -> None:
        self._model = model
        self._rows = rows
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._context_length = context_length
        self._vocab_size = vocab_size
        self._max_queue = max_queue
        self._arrivals = itertools.count()
        self._outbox = Outbox()
        self._oldest_next = False
        self._changed = threading.Condition()
        # Guarded by the condition: waiting sequences (a heap by order), and whether the end has come.
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    @property
    def running_rows(self) -> int:
        """Requests that have a row: prefilling, decoding or waiting for memory."""
        return len(self._rows.admitted)

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue ``request``; call it on the event loop that will iterate the answer.

        Raises InputRefusedError when the request can never run, OverloadedError when the queue is
        full, EngineError after ``close``.
        """
        prompt = self._checked_prompt(request)
        stream = TokenStream(prompt.size, self._wake)
        with self._changed:
            if self._closing:
                raise EngineError("The model is being unloaded.", status=503)
            waiting = sum(not sequence.stream.cancelled for _, sequence in self._waiting)
            if waiting >= self._max_queue + self._rows.free:
                raise OverloadedError("The model's queue is full. Please try again later.")
            sequence = Sequence(
                request,
                prompt=prompt,
                stream=stream,
                detokenizer=self._tokenizer.detokenizer(),
                eos_token_ids=self._eos_token_ids,
                arrival=next(self._arrivals),
            )
            heapq.heappush(self._waiting, (sequence.order, sequence))
            self._changed.notify()
        return stream

    def close(self) -> None:
        """Stop after the current step; every request that has not finished ends with EngineError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _checked_prompt(self, request: GenerationRequest) -> NDArray[np.int64]:
        if not request.prompt:
            raise InputRefusedError("The prompt has no tokens.", param="prompt")
        total = len(request.prompt) + request.max_tokens
        if request.max_tokens < 1 or total > self._context_length:
            raise InputRefusedError(
                f"This model's maximum context length is {self._context_length} tokens."
                f" However, you requested {total} tokens ({len(request.prompt)} in the prompt,"
                f" {request.max_tokens} in the completion).",
                code="context_length_exceeded",
                param="prompt",
            )
        try:
            prompt = np.array(request.prompt, dtype=np.int64)
        except (OverflowError, TypeError, ValueError) as error:
            raise InputRefusedError("The prompt is not a list of token ids.", param="prompt") from error
        if prompt.ndim != 1 or int(prompt.min()) < 0 or int(prompt.max()) >= self._vocab_size:
            raise InputRefusedError("The prompt contains a token id outside the vocabulary.", param="prompt")
        if any(not stop for stop in request.stop):
            raise InputRefusedError("stop cannot contain an empty string.", param="stop")
        if len(request.stop) > MAX_STOPS or sum(map(len, request.stop)) > MAX_STOP_CHARACTERS:
            raise InputRefusedError(
                f"stop may have at most {MAX_STOPS} strings of {MAX_STOP_CHARACTERS} characters in all.",
                param="stop",
            )
        return prompt

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                try:
                    self._step()
                    self._outbox.flush()
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
            self._outbox.post(sequence.stream, EngineError("The model is being unloaded.", status=503))
        self._outbox.flush()

    def _fail_everything(self) -> None:
        """Start again with nothing. Who waits fails too: the next step might end for them as this one did."""
        with self._changed:
            left = self._take_everything()
        for sequence in left:
            self._outbox.post(sequence.stream, EngineError("The generation engine failed."))
        for clean in (self._rows.reset, self._outbox.flush):
            try:
                clean()
            except Exception:
                logger.exception("the generation engine could not be set back")

    def _take_everything(self) -> list[Sequence]:
        """Empty the queue; return the waiting and the admitted sequences. Call it under the condition."""
        left = self._rows.admitted + [sequence for _, sequence in self._waiting]
        self._waiting.clear()
        return left

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._closing or self._waiting or self._rows.admitted):
                self._changed.wait()
            return not self._closing

    def _step(self) -> None:
        self._forget_cancelled()
        self._resume()
        self._admit()
        prefilling = self._next_prefill()
        if prefilling is not None:
            self._prefill(prefilling)
            self._outbox.flush()  # the first token does not wait for the decode call
        self._decode()

    def _forget_cancelled(self) -> None:
        for sequence in self._rows.admitted:
            if sequence.stream.cancelled:
                self._rows.release(sequence)
        if any(sequence.stream.cancelled for _, sequence in self._waiting):
            with self._changed:
                self._waiting = [entry for entry in self._waiting if not entry[1].stream.cancelled]
                heapq.heapify(self._waiting)

    def _next_prefill(self) -> Sequence | None:
        """Return whose prompt goes on: by turns the oldest and the shortest of the highest priority.

        So short prompts do not wait for a long one to end, and a long one never waits for ever.
        """
        prefilling = [sequence for sequence in self._rows.admitted if not sequence.prefilled]
        if not prefilling:
            return None
        highest = max(sequence.request.priority for sequence in prefilling)
        prefilling = [sequence for sequence in prefilling if sequence.request.priority == highest]
        self._oldest_next = not self._oldest_next
        return (
            prefilling[0] if self._oldest_next else min(prefilling, key=lambda it: it.prompt.size - it.length)
        )

    def _paused(self) -> list[Sequence]:
        rows = self._rows
        return [
            sequence for sequence in rows.admitted if sequence.prefilled and not rows.is_running(sequence)
        ]

    def _resume(self) -> None:
        for sequence in self._paused():
            if self._rows.grant(sequence, sequence.length + 1):
                self._rows.start(sequence)

    def _admit(self) -> None:
        """Give waiting sequences rows, in their order, unless admitted ones wait for memory."""
        with self._changed:
            while self._waiting and not self._paused():
                sequence = self._waiting[0][1]
                if not self._rows.admit(sequence, sequence.prompt.size):
                    return
                heapq.heappop(self._waiting)

    def _prefill(self, sequence: Sequence) -> None:
        """Run the next chunk of a prompt; after the last one the sequence joins the decode batch."""
        start = sequence.length
        chunk = sequence.prompt[start : start + CHUNK_TOKENS]
        try:
            logits = self._model.prefill(sequence.row, chunk, start, priority=sequence.request.priority)
        except Exception:
            logger.exception("prefill failed")
            self._fail([sequence], EngineError("The model failed on this prompt."))
            return
        sequence.length += chunk.size
        if sequence.prefilled:
            self._rows.start(sequence)
            self._advance(sequence, logits)

    def _decode(self) -> None:
        """Run one token of every running sequence that has memory for it."""
        for sequence in self._rows.running:
            if not self._rows.grant(sequence, sequence.length + 1):
                self._rows.pause(sequence)
        running = self._rows.running
        if not running:
            return
        try:
            logits = self._model.decode(
                [sequence.last_token for sequence in running],
                [sequence.length for sequence in running],
                priority=max(sequence.request.priority for sequence in running),
            )
        except Exception:
            logger.exception("decode failed")
            self._fail(running, EngineError("The model failed while it generated."))
            return
        for sequence in running:  # all of them first: one that ends makes another move with its memory
            sequence.length += 1
        for sequence, row_logits in zip(running, logits, strict=True):
            self._advance(sequence, row_logits)

    def _advance(self, sequence: Sequence, logits: Logits) -> None:
        """Choose and deliver the next token of ``sequence``; free its row when that was the last."""
        try:
            delta = sequence.accept(sequence.next_token(logits))
        except Exception as error:
            logger.exception("choosing a token failed")
            failure = (
                error if isinstance(error, EngineError) else EngineError("The generation engine failed.")
            )
            self._fail([sequence], failure)
            return
        if delta is not None:
            if delta.finish_reason is not None:
                self._rows.release(sequence)
            self._outbox.post(sequence.stream, delta)

    def _fail(self, sequences: list[Sequence], error: EngineError) -> None:
        for sequence in sequences:
            self._outbox.post(sequence.stream, error)
            if sequence.row >= 0:
                self._rows.release(sequence)
