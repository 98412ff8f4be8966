"""Incremental text equals the full decoding, and never shows half a character."""

from __future__ import annotations

import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.generation.text.detokenizer import REPLACEMENT, TokenBytes
from tests.engines.generation.text.tiny_tokenizers import byte_fallback, byte_level, token_id

BYTE_LEVEL = byte_level()
BYTE_FALLBACK = byte_fallback()
BYTE_LEVEL_BYTES = TokenBytes(BYTE_LEVEL)
BYTE_FALLBACK_BYTES = TokenBytes(BYTE_FALLBACK)


def pieces(token_bytes: TokenBytes, ids: list[int]) -> list[str]:
    detokenizer = token_bytes.detokenizer()
    return [*(detokenizer.push(each) for each in ids), detokenizer.flush()]


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=60))
def test_pieces_of_any_tokens_are_the_full_decoding(ids: list[int]) -> None:
    assert "".join(pieces(BYTE_LEVEL_BYTES, ids)) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=60))
def test_a_text_comes_back_without_a_broken_character(text: str) -> None:
    ids = BYTE_LEVEL.encode(text).ids
    parts = pieces(BYTE_LEVEL_BYTES, ids)
    assert "".join(parts) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in part for part in parts)


@given(st.text(alphabet="helo wrd é👍今\n", min_size=1, max_size=40))
def test_a_vocabulary_with_byte_fallback_streams_its_full_decoding(text: str) -> None:
    ids = BYTE_FALLBACK.encode(text).ids
    parts = pieces(BYTE_FALLBACK_BYTES, ids)
    assert "".join(parts) == BYTE_FALLBACK.decode(ids)
    assert not any(REPLACEMENT in part for part in parts)


def test_a_character_split_over_tokens_comes_when_it_is_complete() -> None:
    ids = [token_id(BYTE_FALLBACK, f"<0x{byte:02X}>") for byte in "👍".encode()]
    assert pieces(BYTE_FALLBACK_BYTES, ids) == ["", "", "", "👍", ""]


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    ids = [_byte_token(BYTE_LEVEL, byte) for byte in "é".encode()]
    assert pieces(BYTE_LEVEL_BYTES, ids[:1]) == ["", REPLACEMENT]
    assert pieces(BYTE_LEVEL_BYTES, ids) == ["", "é", ""]


def test_control_tokens_have_no_text_even_inside_a_character() -> None:
    first, second = (_byte_token(BYTE_LEVEL, byte) for byte in "é".encode())
    end = token_id(BYTE_LEVEL, "<|im_end|>")
    assert "".join(pieces(BYTE_LEVEL_BYTES, [first, end, second])) == "é"


def test_a_vocabulary_of_bytes_is_recognised() -> None:
    assert BYTE_LEVEL_BYTES.byte_level
    assert not BYTE_FALLBACK_BYTES.byte_level


def test_endless_broken_bytes_are_shown_at_last() -> None:
    broken = token_id(BYTE_FALLBACK, "<0xFF>")
    detokenizer = BYTE_FALLBACK_BYTES.detokenizer()
    shown = [detokenizer.push(broken) for _ in range(64)]
    assert any(shown)


def _byte_token(tokenizer: tokenizers.Tokenizer, byte: int) -> int:
    token_bytes = TokenBytes(tokenizer)
    return next(i for i in range(tokenizer.get_vocab_size()) if token_bytes.of(i) == bytes([byte]))


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=60))
def test_with_control_tokens_shown_pieces_are_the_decoding_with_them(ids: list[int]) -> None:
    """Half a character that a control token cuts off is replaced where it stands."""
    detokenizer = BYTE_LEVEL_BYTES.detokenizer(skip_special=False, spaces_between_special=False)
    shown = "".join([*(detokenizer.push(each) for each in ids), detokenizer.flush()])
    expected = b""
    text = ""
    for each in ids:
        if BYTE_LEVEL_BYTES.is_special(each):
            text += expected.decode("utf-8", "replace") + BYTE_LEVEL_BYTES.name(each)
            expected = b""
        else:
            expected += BYTE_LEVEL_BYTES.of(each)
    assert shown == text + expected.decode("utf-8", "replace")


def test_a_token_shown_alone_is_its_bytes_or_its_name() -> None:
    end = token_id(BYTE_LEVEL, "<|im_end|>")
    assert BYTE_LEVEL_BYTES.shown(end) == b"<|im_end|>"
    assert BYTE_LEVEL_BYTES.of(end) == b""
    assert BYTE_LEVEL_BYTES.shown(_byte_token(BYTE_LEVEL, 0xE4)) == b"\xe4"
    assert BYTE_LEVEL_BYTES.shown(10**6) == b""
    assert BYTE_FALLBACK_BYTES.shown(token_id(BYTE_FALLBACK, "<0xFF>")) == b"\xff"
    assert BYTE_FALLBACK_BYTES.shown(token_id(BYTE_FALLBACK, "▁h")) == b" h"
    assert BYTE_FALLBACK_BYTES.shown(token_id(BYTE_FALLBACK, "</s>")) == b"</s>"
