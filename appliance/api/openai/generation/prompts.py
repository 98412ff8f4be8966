"""The prompts of a text completion: any of the four forms, as token ids."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.api.openai.generation.checks import naming, refused
from appliance.api.openai.text_or_tokens import text_or_tokens
from appliance.engines.generation.engine import GenerationEngine
from appliance.errors import InvalidRequestError

MAX_PROMPTS = 128
# The engine refuses longer texts by their number of tokens; a piece of a text to be cut stays below that.
PIECE_CHARACTERS_PER_TOKEN = 4
# How far from its place the border of a piece may go to fall between two words.
BORDER_SEARCH = 2000


class Prompt(msgspec.Struct, frozen=True):
    """One prompt: its token ids, and its text when it was given as a text and not cut."""

    ids: list[int]
    text: str | None = None


async def prompts_of(
    value: str | list[Any], engine: GenerationEngine, *, add_special_tokens: bool, last_tokens: int | None
) -> list[Prompt]:
    """Return the prompts, of each only the ``last_tokens`` last tokens; token ids are used as they are.

    Raises InvalidRequestError for a form the contract has not, for empty prompts and for ids outside
    the vocabulary, InputRefusedError for a text far beyond the context.
    """
    texts, token_lists = text_or_tokens(
        _ends(value, last_tokens), "prompt", max_items=MAX_PROMPTS, context_length=engine.context_length
    )
    if not texts and not token_lists:
        raise refused("prompt", "please provide at least one prompt")
    if not all(texts) or not all(token_lists):
        raise _empty_prompt()
    for ids in token_lists:
        if not 0 <= min(ids) <= max(ids) < engine.vocab_size:
            wrong = max(ids) if max(ids) >= engine.vocab_size else min(ids)
            raise refused("prompt", f"Token id {wrong} is out of vocabulary")
    if texts:
        with naming("prompt"):
            return [await _encoded(text, engine, add_special_tokens, last_tokens) for text in texts]
    return [Prompt(ids) for ids in token_lists]


def _ends(value: str | list[Any], last_tokens: int | None) -> str | list[Any]:
    """Return the ends of token lists: what is cut off may be of any length."""
    if last_tokens is None or isinstance(value, str):
        return value
    if value and type(value[0]) is int:
        return value[-last_tokens:]
    return [item[-last_tokens:] if isinstance(item, list) else item for item in value]


async def _encoded(text: str, engine: GenerationEngine, special: bool, last_tokens: int | None) -> Prompt:
    piece = PIECE_CHARACTERS_PER_TOKEN * engine.context_length
    if last_tokens is not None and len(text) > piece:
        return Prompt(await _last_ids(text, engine, special, last_tokens, piece))
    ids = await engine.encode(text, special)
    if not ids:
        raise _empty_prompt()
    if last_tokens is not None and len(ids) > last_tokens:
        return Prompt(ids[-last_tokens:])
    return Prompt(ids, text)


async def _last_ids(
    text: str, engine: GenerationEngine, special: bool, last_tokens: int, piece: int
) -> list[int]:
    """Return the last ids of a text whose beginning is not wanted and may be far too long to encode."""
    ids: list[int] = []
    end = len(text)
    while end > 0 and len(ids) < last_tokens:
        start = _border(text, end - piece)
        ids = await engine.encode(text[start:end], special and start == 0) + ids
        end = start
    return ids[-last_tokens:]


def _border(text: str, place: int) -> int:
    """Return a place at or a little after ``place`` where a word begins with its space.

    Tokenizers cut a text there too, so the pieces have the tokens of the whole.
    """
    if place <= 0:
        return 0
    for border in range(place, place + BORDER_SEARCH):
        if text[border] == " " and not text[border - 1].isspace() and not text[border + 1].isspace():
            return border
    return place


def _empty_prompt() -> InvalidRequestError:
    return refused("prompt", "Either prompt or prompt_ids should be provided.")
