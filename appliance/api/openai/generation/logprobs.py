"""Log probabilities as the APIs show them. Numbers are the engine's own: equal ones are printed alike."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from appliance.engines.generation.contract import TokenLogprob

T = TypeVar("T")

# What stands for minus infinity and everything below this: JSON has no infinities.
LEAST = -9999.0
# Shaping more numbers than this takes longer than the event loop may be away.
SHAPED_AT_ONCE = 5000


class Vocabulary(Protocol):
    """What is to be known of tokens: a GenerationEngine."""

    def token_text(self, token_id: int) -> str:
        """Return the token alone, decoded: U+FFFD for half a character, control tokens by their name."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the token's true bytes, of a control token those of its name."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Return whether it is a control token."""
        ...


class CompletionLogprobs(msgspec.Struct):
    """Text completions' form: four lists, one item for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextOffsets:
    """Where each of a text's tokens begins, in characters; ``next`` takes the tokens in order.

    A token that begins inside a character has the offset of that character.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, skip_special_tokens: bool, spaces: bool = False, unshown: int = 0
    ) -> None:
        """``spaces``: neighbouring control tokens have one between them; the first ``unshown`` have no text."""
        self._vocabulary = vocabulary
        self._skip_special_tokens = skip_special_tokens
        self._spaces = spaces
        self._unshown = unshown
        self._after_special = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def next(self, token_id: int) -> int:
        """Return where ``token_id`` begins, and go past it."""
        offset = self._characters
        if self._unshown:
            self._unshown -= 1
        elif not self._vocabulary.is_special(token_id):
            self._after_special = False
            self._characters += len(self._decoder.decode(self._vocabulary.token_bytes(token_id)))
        elif not self._skip_special_tokens:
            self._characters += len(self._decoder.decode(b"", final=True))
            self._characters += len(self._vocabulary.token_text(token_id))
            self._characters += self._spaces and self._after_special
            self._after_special = True
        return offset

    def skip(self, characters: int) -> None:
        """Go to the end of a prompt of that many characters."""
        self._characters = characters


async def shaped(numbers: int, work: Callable[[], T]) -> T:
    """Return the result of ``work``, which shapes that many log probabilities; much of it is done in a thread."""
    return work() if numbers <= SHAPED_AT_ONCE else await asyncio.to_thread(work)


def chat_logprobs(
    entries: Iterable[TokenLogprob], top_logprobs: int, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Return chat's form: one item for each token, with its true bytes and the best tokens there."""
    return {
        "content": [
            _item(entry.token_id, entry.logprob, vocabulary)
            | {
                "top_logprobs": [
                    _item(token_id, value, vocabulary) for token_id, value in entry.top[:top_logprobs]
                ]
            }
            for entry in entries
        ],
        "refusal": None,
    }


def completion_logprobs(
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    top_logprobs: int,
    vocabulary: Vocabulary,
    offsets: TextOffsets,
) -> CompletionLogprobs:
    """Return text completions' form; the best tokens are joined by the token itself.

    ``entries`` are those of ``token_ids``, None for a prompt's first token, which nothing precedes.
    """
    return CompletionLogprobs(
        tokens=[vocabulary.token_text(token_id) for token_id in token_ids],
        token_logprobs=[None if entry is None else finite(entry.logprob) for entry in entries],
        top_logprobs=[
            None if entry is None else _best_texts(entry, top_logprobs, vocabulary) for entry in entries
        ],
        text_offset=[offsets.next(token_id) for token_id in token_ids],
    )


def prompt_logprobs(
    entries: Sequence[TokenLogprob | None], top_logprobs: int, vocabulary: Vocabulary
) -> list[dict[str, dict[str, Any]] | None]:
    """Return vLLM's form of a prompt's: by token id the token itself, then the best ones, each with its rank."""
    return [None if entry is None else _by_id(entry, top_logprobs, vocabulary) for entry in entries]


def finite(logprob: float) -> float:
    """Return a number that JSON has."""
    return max(LEAST, logprob)  # in this order LEAST also stands for what is no number


def _item(token_id: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "token": vocabulary.token_text(token_id),
        "logprob": finite(logprob),
        "bytes": list(vocabulary.token_bytes(token_id)),
    }


def _best_texts(entry: TokenLogprob, top_logprobs: int, vocabulary: Vocabulary) -> dict[str, float]:
    """Several tokens may have one text, such as halves of characters: the likeliest stands for it."""
    best: dict[str, float] = {}
    for token_id, logprob in (*entry.top[:top_logprobs], (entry.token_id, entry.logprob)):
        text, value = vocabulary.token_text(token_id), finite(logprob)
        if value > best.get(text, -float("inf")):
            best[text] = value
    return best


def _by_id(entry: TokenLogprob, top_logprobs: int, vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    ranked = [(entry.token_id, entry.logprob, entry.rank)]
    ranked += [
        (token_id, logprob, rank)
        for rank, (token_id, logprob) in enumerate(entry.top[:top_logprobs], 1)
        if token_id != entry.token_id
    ]
    return {
        str(token_id): {
            "logprob": finite(logprob),
            "rank": rank,
            "decoded_token": vocabulary.token_text(token_id),
        }
        for token_id, logprob, rank in ranked
    }
