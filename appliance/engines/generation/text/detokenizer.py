"""Token ids to text, one token at a time, without ever showing half a character.

Byte-level vocabularies (GPT-2's byte alphabet; Llama 3, Qwen, SmolLM and most others) are turned
into bytes and decoded as UTF-8 incrementally, which is exact for every token sequence. Others are
decoded over a short window.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Protocol

import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# How SentencePiece vocabularies write a space, and a byte that is no character of theirs.
METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Detokenizer(Protocol):
    """The text of one sequence. The pieces of ``push`` and ``flush`` concatenate to its full decoding."""

    def push(self, token_id: int) -> str:
        """Take one token; return the characters that are complete now."""
        ...

    def flush(self) -> str:
        """Return what is left at the end; an unfinished character becomes U+FFFD."""
        ...


class TokenBytes:
    """The bytes of each token of a byte-level vocabulary, and the detokenizers of its sequences."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _byte_alphabet()
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        self._bytes: dict[int, bytes] = {}
        self.byte_level = _is_byte_level(tokenizer)

    def of(self, token_id: int) -> bytes:
        """Return the bytes that the token stands for: none for a special or an unknown one."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up(token_id)
        return known

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is a control token, which has no text."""
        return token_id in self._special_ids

    def name(self, token_id: int) -> str:
        """Return how a control token is spelled."""
        return str(self._tokenizer.id_to_token(token_id) or "")

    def shown(self, token_id: int) -> bytes:
        """Return the token's bytes, those of its name for a control token."""
        return self.name(token_id).encode() if self.is_special(token_id) else self.of(token_id)

    def detokenizer(self, *, skip_special: bool = True, spaces_between_special: bool = True) -> Detokenizer:
        """Return the detokenizer of a new sequence.

        With ``skip_special`` False control tokens appear by their names, neighbours with a space
        between them if ``spaces_between_special``.
        """
        plain = _ByteDetokenizer(self) if self.byte_level else _WindowDetokenizer(self._tokenizer, self)
        return plain if skip_special else _ShowingDetokenizer(plain, self, spaces_between_special)

    def _look_up(self, token_id: int) -> bytes:
        token = None if token_id in self._special_ids else self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if not self.byte_level:
            if _BYTE_TOKEN.fullmatch(token):
                return bytes([int(token[3:5], 16)])
            return token.replace(METASPACE, " ").encode()
        try:
            return bytes([self._alphabet[character] for character in token])
        except KeyError:  # an added token holds plain text, such as one with a space
            return token.encode()


class _ByteDetokenizer:
    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes.of(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokenizer:
    """Decodes the tokens since the last complete character, after one stretch of context before them.

    The context keeps decoders that treat the start of a text differently (a leading space) right.
    Exact as long as the bytes of the sequence are valid UTF-8.
    """

    # A character has at most four bytes, so more unfinished tokens than this will never become one.
    _UNFINISHED_AT_MOST = 16

    def __init__(self, tokenizer: tokenizers.Tokenizer, token_bytes: TokenBytes) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes
        self._context: list[int] = []
        self._open: list[int] = []

    def push(self, token_id: int) -> str:
        if self._token_bytes.is_special(token_id):
            return ""
        self._open.append(token_id)
        text = self._text()
        if text.endswith(REPLACEMENT) and len(self._open) < self._UNFINISHED_AT_MOST:
            return ""
        return self._settle(text)

    def flush(self) -> str:
        return self._settle(self._text())

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._context + self._open))

    def _settle(self, text: str) -> str:
        seen = len(self._tokenizer.decode(self._context)) if self._context else 0
        if text[seen:]:
            self._context, self._open = self._open, []
        return text[seen:]


class _ShowingDetokenizer:
    """Writes control tokens by their names between the texts of another detokenizer."""

    def __init__(self, plain: Detokenizer, token_bytes: TokenBytes, spaces: bool) -> None:
        self._plain = plain
        self._token_bytes = token_bytes
        self._spaces = spaces
        self._after_special = False

    def push(self, token_id: int) -> str:
        if not self._token_bytes.is_special(token_id):
            self._after_special = False
            return self._plain.push(token_id)
        name = self._token_bytes.name(token_id)
        text = self._plain.flush() + (" " + name if self._after_special and self._spaces else name)
        self._after_special = True
        return text

    def flush(self) -> str:
        return self._plain.flush()


def _is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    return [step.get("type") for step in steps] == ["ByteLevel"]


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable character of every byte: printable Latin-1 stands for itself, the rest follow."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}
