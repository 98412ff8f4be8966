"""What engines that encode have in common: threads that tokenise, one that runs the model, and their end."""

from __future__ import annotations

from appliance.engines.encoding.batching import Batcher
from appliance.engines.encoding.offload import Offload


class EncodingEngine:
    """The working parts of one encoder pack, loaded."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._thread = Offload("tokenizer")

    @property
    def alive(self) -> bool:
        """Whether the thread that does the work is there."""
        return self._batcher.alive

    @property
    def queued_tokens(self) -> int:
        """How many tokens wait for their run."""
        return self._batcher.queued_tokens

    def close(self) -> None:
        """Stop working; requests that still wait fail with EngineError. Blocks for one batch."""
        self._thread.close()
        self._batcher.close()
