"""Text to token ids and back, with the tokenizer of the pack.

All methods are safe to call from several threads. Encoding a long text takes long: call it off
the event loop.
"""

from __future__ import annotations

import functools
from pathlib import Path

import tokenizers

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.text.control_tokens import ControlTokens
from appliance.engines.generation.text.detokenizer import Detokenizer, TokenBytes
from appliance.packs.errors import PackError

# No vocabulary averages more characters to a token, so a longer text cannot fit the context.
CHARACTERS_PER_TOKEN = 64
# A text with more characters a token of context than this is counted in slices before it is encoded.
COUNTED_CHARACTERS_PER_TOKEN = 4
SLICE_CHARACTERS = 1 << 13
# A cut makes at most a few tokens more (of a word, a character or a control token that it runs through).
TOKENS_PER_CUT = 16


class Tokenizer:
    """The tokenizer of one pack; ``context_length`` bounds the texts that it takes."""

    def __init__(self, path: Path, context_length: int) -> None:
        """Load ``tokenizer.json``. Raises PackError when it is not one."""
        self._path = path
        self._plain = _load(path)
        self._context_length = context_length
        self.max_characters = context_length * CHARACTERS_PER_TOKEN
        added = self._plain.get_added_tokens_decoder()
        self._control_ids = {token.content: token_id for token_id, token in added.items() if token.special}
        self._added_ids = {token.content: token_id for token_id, token in added.items()}
        self.control_tokens = ControlTokens(self._control_ids)
        self.token_bytes = TokenBytes(self._plain)
        self.vocab_size: int = self._plain.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool, *, literal: bool = False) -> list[int]:
        """Return the ids of ``text``; control tokens spelled in it are control tokens, unless ``literal``.

        Raises InputRefusedError (code ``context_length_exceeded``) when it is far too long to fit.
        """
        return self._encode(
            self._literal if literal else self._plain, self._checked(text), add_special_tokens
        )

    def encode_rendered(self, text: str, marker: str) -> list[int]:
        """Return the ids of a rendered chat template in which ``marker`` breaks the user's control tokens.

        Text without the marker gives the same ids as ``encode``. Otherwise the template's own control
        tokens are looked up and the texts between them encoded with no control token recognised
        (the few vocabularies that treat the start of a text differently may then differ at such a border).
        Raises InputRefusedError as ``encode`` does.
        """
        self._checked(text.replace(marker, ""))
        if marker not in text:
            return self._encode(self._plain, text, add_special_tokens=False)
        ids: list[int] = []
        for place, part in enumerate(self.control_tokens.split(text, marker)):
            if place % 2:
                ids.append(self._control_ids[part])
            elif part:
                ids += self._encode(self._literal, part.replace(marker, ""), add_special_tokens=False)
        return ids

    @functools.cached_property
    def special_prefix(self) -> list[int]:
        """The tokens that encoding with special tokens puts before a text."""
        return self._encode(self._plain, "", add_special_tokens=True)

    def added_token_id(self, text: str) -> int | None:
        """Return the id of the added token that is spelled ``text``, special or not."""
        return self._added_ids.get(text)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids``; ids outside the vocabulary have none."""
        return str(self._plain.decode(ids, skip_special_tokens=skip_special_tokens))

    def detokenizer(self, *, skip_special: bool = True, spaces_between_special: bool = True) -> Detokenizer:
        """Return the incremental detokenizer of a new sequence (see ``TokenBytes.detokenizer``)."""
        return self.token_bytes.detokenizer(
            skip_special=skip_special, spaces_between_special=spaces_between_special
        )

    @functools.cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """The same tokenizer taking control tokens for text; rarely needed, so loaded when it is."""
        literal = _load(self._path)
        literal.encode_special_tokens = True
        return literal

    def _checked(self, text: str) -> str:
        if len(text) > self.max_characters:
            raise InputRefusedError(
                f"This model's maximum context length is {self._context_length} tokens."
                f" However, you sent a text of {len(text)} characters, which cannot fit."
                " Please reduce the length of the text.",
                code="context_length_exceeded",
            )
        if len(text) > self._context_length * COUNTED_CHARACTERS_PER_TOKEN:
            self._count(text)
        return text

    def _count(self, text: str) -> None:
        """Refuse ``text`` as soon as its beginning alone has more tokens than the context.

        Encoding takes a second for every hundred thousand digits; nobody waits for those that cannot fit.
        """
        tokens = 0
        for start in range(0, len(text), SLICE_CHARACTERS):
            part = text[start : start + SLICE_CHARACTERS]
            tokens += len(self._encode(self._plain, part, add_special_tokens=False)) - TOKENS_PER_CUT
            if tokens > self._context_length:
                raise InputRefusedError(
                    f"This model's maximum context length is {self._context_length} tokens."
                    f" However, your text has more than {tokens}. Please reduce the length of the text.",
                    code="context_length_exceeded",
                )

    @staticmethod
    def _encode(tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
        try:
            # The batch call releases the GIL, the single one does not.
            encoding = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except (TypeError, UnicodeEncodeError) as error:  # a lone surrogate is no text
            raise InputRefusedError("The text is not valid Unicode.") from error
        return list(encoding.ids)


def _load(path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise PackError(f"{path.name} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
