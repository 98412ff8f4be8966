"""Which requests can run at all: checked before anything is queued."""

from __future__ import annotations

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.contract import Beams, GenerationRequest
from appliance.engines.generation.scheduling.rows import RowTable

# Stop strings are searched after every token, so their number costs everybody time.
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024


class Admission:
    """Checks requests against the context, the vocabulary and the memory."""

    def __init__(self, rows: RowTable, *, context_length: int, vocab_size: int) -> None:
        self._rows = rows
        self._context_length = context_length
        self._vocab_size = vocab_size

    def check(self, request: GenerationRequest, beams: Beams | None = None) -> None:
        """Raise InputRefusedError when ``request`` can never run."""
        self._check_lengths(request, least=0 if request.prompt_logprobs is not None and beams is None else 1)
        self._check_ids(request)
        if any(not stop for stop in request.stop):
            raise InputRefusedError("stop cannot contain an empty string.", param="stop")
        if len(request.stop) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in request.stop):
            raise InputRefusedError(
                f"stop may have at most {MAX_STOPS} strings of at most {MAX_STOP_CHARACTERS} characters each.",
                param="stop",
            )
        if beams is not None:
            tokens = len(request.prompt) + request.max_tokens
            if not self._rows.can_hold(beams.width, tokens):
                raise InputRefusedError(
                    f"A beam search of width {beams.width} over {tokens} tokens needs more memory than this"
                    " model's KV cache has. Please reduce the width or the completion.",
                    param="best_of",
                )

    def _check_lengths(self, request: GenerationRequest, *, least: int) -> None:
        if not request.prompt:
            raise InputRefusedError("The prompt has no tokens.", param="prompt")
        total = len(request.prompt) + request.max_tokens
        if request.max_tokens < least or total > self._context_length:
            raise InputRefusedError(
                f"This model's maximum context length is {self._context_length} tokens."
                f" However, you requested {total} tokens ({len(request.prompt)} in the prompt,"
                f" {request.max_tokens} in the completion).",
                code="context_length_exceeded",
                param="prompt",
            )

    def _check_ids(self, request: GenerationRequest) -> None:
        biased = [token_id for token_id, _ in request.sampling.logit_bias]
        for ids, name in (
            (request.prompt, "prompt"),
            (request.enforced, "enforced_str"),
            (biased, "logit_bias"),
        ):
            try:
                inside = all(0 <= token_id < self._vocab_size for token_id in ids)
            except TypeError as error:
                raise InputRefusedError(f"The {name} is not a list of token ids.", param=name) from error
            if not inside:
                raise InputRefusedError(f"The {name} contains a token id outside the vocabulary.", param=name)
