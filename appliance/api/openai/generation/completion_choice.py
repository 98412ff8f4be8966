"""One choice of a text completion as it grows: echo, text and log probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from appliance.api.openai.generation.choices import PromptLogprobs
from appliance.api.openai.generation.logprobs import (
    CompletionLogprobs,
    TextOffsets,
    Vocabulary,
    completion_logprobs,
)
from appliance.api.openai.generation.prompts import Prompt
from appliance.engines.generation.contract import TokenLogprob


class Showing(msgspec.Struct, frozen=True, kw_only=True):
    """What of a choice is shown."""

    vocabulary: Vocabulary
    # The best tokens beside each token's log probability; None = no log probabilities.
    logprobs: int | None
    skip_special_tokens: bool
    spaces_between_special_tokens: bool


class Echo(msgspec.Struct, frozen=True):
    """The prompt as the answer repeats it: text, token ids, and each one's log probability when wanted."""

    text: str
    ids: list[int]
    entries: PromptLogprobs
    # Tokens at the front that are not in the text: the tokenizer put them before it.
    unshown: int


def echo_of(prompt: Prompt, text: str, scores: PromptLogprobs | None, vocabulary: Vocabulary) -> Echo:
    """Return the echo of a prompt whose text is ``text``."""
    first = prompt.ids[0]
    added = vocabulary.is_special(first) and not text.startswith(vocabulary.token_text(first))
    return Echo(text, prompt.ids, scores or [], int(added))


class GrowingChoice:
    """Takes what is produced; ``shown`` gives what became known since the last time."""

    def __init__(self, showing: Showing, echo: Echo | None) -> None:
        self._showing = showing
        self._echo = echo
        self._text = ""
        self._ids: list[int] = []
        self._entries: list[TokenLogprob] = []
        self._offsets = TextOffsets(
            showing.vocabulary,
            skip_special_tokens=showing.skip_special_tokens,
            spaces=showing.spaces_between_special_tokens,
        )

    def take(self, text: str, token_ids: list[int], logprobs: Sequence[TokenLogprob]) -> None:
        """Take what was produced."""
        self._text += text
        if self._showing.logprobs is not None:
            self._ids += token_ids
            self._entries += logprobs

    def shown(self) -> tuple[str, CompletionLogprobs | None]:
        """Return the text and the log probabilities that are new; the echo comes with the first."""
        text, self._text = self._text, ""
        echo, self._echo = self._echo, None
        if echo is not None:
            text = echo.text + text
        if self._showing.logprobs is None:
            return text, None
        new = self._shaped(self._ids, self._entries, self._showing.logprobs, echo)
        self._ids, self._entries = [], []
        return text, new

    @property
    def numbers(self) -> int:
        """How many log probabilities ``shown`` will have to shape."""
        if self._showing.logprobs is None:
            return 0
        entries = len(self._entries) + (len(self._echo.entries) if self._echo is not None else 0)
        return entries * (self._showing.logprobs + 1)

    def _shaped(
        self, ids: list[int], entries: list[TokenLogprob], top: int, echo: Echo | None
    ) -> CompletionLogprobs:
        vocabulary = self._showing.vocabulary
        if echo is None:
            return completion_logprobs(ids, entries, top, vocabulary, self._offsets)
        of_prompt = TextOffsets(vocabulary, skip_special_tokens=False, unshown=echo.unshown)
        shaped = completion_logprobs(echo.ids, echo.entries, top, vocabulary, of_prompt)
        self._offsets.skip(len(echo.text))
        more = completion_logprobs(ids, entries, top, vocabulary, self._offsets)
        return CompletionLogprobs(
            tokens=shaped.tokens + more.tokens,
            token_logprobs=shaped.token_logprobs + more.token_logprobs,
            top_logprobs=shaped.top_logprobs + more.top_logprobs,
            text_offset=shaped.text_offset + more.text_offset,
        )
