"""The requests that wait for rows: higher priority first, then arrival; a large one in waves."""

from __future__ import annotations

import heapq
import itertools

from appliance.engines.generation.scheduling.beam_search import BeamGroup
from appliance.engines.generation.scheduling.sequence import Sequence

# After so many sequences of one request its others queue up again behind what has arrived meanwhile.
WAVE = 8


class Submission:
    """One request in the queue: the sequences that still need rows, or all of a beam search's."""

    def __init__(self, sequences: list[Sequence], group: BeamGroup | None = None) -> None:
        self.sequences = list(sequences)  # the caller's own may be a beam search's members
        self.group = group
        self.priority = sequences[0].request.priority
        self.admitted = 0

    @property
    def waits(self) -> bool:
        """Whether a row is wanted; one that has just been given is not, nor one for nobody."""
        return any(each.row < 0 and not each.receiver.cancelled for each in self.sequences)

    def forget_cancelled(self) -> None:
        """Drop the sequences that nobody waits for any more."""
        self.sequences = [each for each in self.sequences if not each.receiver.cancelled]


class WaitingQueue:
    """A heap of submissions. Used under the scheduler's lock."""

    def __init__(self) -> None:
        self._arrivals = itertools.count()
        self._heap: list[tuple[int, int, Submission]] = []

    def __len__(self) -> int:
        return sum(1 for *_, each in self._heap if each.waits)

    def push(self, submission: Submission) -> None:
        """Put a submission behind those of its priority."""
        heapq.heappush(self._heap, (-submission.priority, next(self._arrivals), submission))

    def first(self) -> Submission | None:
        """Return whose turn it is."""
        return self._heap[0][2] if self._heap else None

    def took(self, submission: Submission, count: int) -> None:
        """Tell that the first ``count`` sequences of ``submission``, which is in the queue, have got rows."""
        del submission.sequences[:count]
        submission.admitted += count
        wave_is_over = submission.admitted >= WAVE
        if submission.sequences and not wave_is_over:
            return
        self._heap = [entry for entry in self._heap if entry[2] is not submission]
        heapq.heapify(self._heap)
        if submission.sequences:
            submission.admitted = 0
            self.push(submission)

    def forget_cancelled(self) -> None:
        """Drop what nobody waits for any more."""
        for *_, submission in self._heap:
            submission.forget_cancelled()
        self._heap = [entry for entry in self._heap if entry[2].sequences]
        heapq.heapify(self._heap)

    def clear(self) -> list[Sequence]:
        """Empty the queue; return the sequences that were in it."""
        left = [sequence for *_, submission in self._heap for sequence in submission.sequences]
        self._heap.clear()
        return left
