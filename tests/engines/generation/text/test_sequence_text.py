"""Where an answer ends, why, and what of its text is shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.generation.text.detokenizer import TokenBytes
from appliance.engines.generation.text.sequence_text import SequenceText
from appliance.engines.generation.text.tokenizer import Tokenizer
from tests.engines.generation.conftest import request
from tests.engines.generation.text.tiny_tokenizers import byte_level, token_id

PLAIN = byte_level()
TOKEN_BYTES = TokenBytes(PLAIN)
EOS = token_id(PLAIN, "<|im_end|>")
START = token_id(PLAIN, "<|im_start|>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    PLAIN.save(str(path))
    return Tokenizer(path, context_length=512)


def ids(text: str) -> list[int]:
    return PLAIN.encode(text).ids


def read(
    tokenizer: Tokenizer, tokens: list[int], **fields: Any
) -> tuple[str, str | None, str | int | None, int]:
    """Push tokens to the end; return the text, why it ended and with what, and how many it took."""
    fields = {"max_tokens": 500, **fields}
    text = SequenceText(request([1], **fields), tokenizer, frozenset({EOS}))
    shown = ""
    for each in tokens:
        piece = text.push(each)
        shown += piece.text
        if piece.finish_reason is not None:
            return shown, piece.finish_reason, piece.stop_reason, text.produced
    return shown, None, None, text.produced


def test_the_end_of_sequence_ends_the_text_and_is_none_of_it(tokenizer: Tokenizer) -> None:
    tokens = [*ids("a line"), EOS, *ids("more")]
    count = len(ids("a line")) + 1
    assert read(tokenizer, tokens) == ("a line", "stop", None, count)
    assert read(tokenizer, tokens, skip_special_tokens=False) == ("a line", "stop", None, count)
    shown = read(tokenizer, tokens, skip_special_tokens=False, include_stop=True, stop=("never",))
    assert shown == ("a line<|im_end|>", "stop", None, count)
    hidden = read(tokenizer, tokens, include_stop=True, stop=("never",))
    assert hidden == ("a line", "stop", None, count)


def test_an_ignored_end_of_sequence_is_an_ordinary_token(tokenizer: Tokenizer) -> None:
    tokens = [*ids("a"), EOS, *ids("b")]
    assert read(tokenizer, tokens, ignore_eos=True) == ("ab", None, None, 3)
    assert read(tokenizer, tokens, ignore_eos=True, skip_special_tokens=False)[0] == "a<|im_end|>b"


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 9}])
def test_under_a_constraint_the_end_of_sequence_always_counts(
    tokenizer: Tokenizer, fields: dict[str, Any]
) -> None:
    read_it = read(tokenizer, [*ids("a"), EOS, *ids("b")], constraint=object(), **fields)
    assert read_it == ("a", "stop", None, 2)


def test_a_stop_token_ends_the_text_with_its_id(tokenizer: Tokenizer) -> None:
    first, second = ids("x")[0], ids("y")[0]
    tokens = [first, second, first]
    stop = {"stop_token_ids": frozenset({second})}
    assert read(tokenizer, tokens, **stop) == ("x", "stop", second, 2)
    assert read(tokenizer, tokens, **stop, include_stop=True) == ("xy", "stop", second, 2)
    both = frozenset({EOS})
    assert read(tokenizer, [first, EOS], stop_token_ids=both) == ("x", "stop", None, 2)  # the end comes first
    assert read(tokenizer, [first, EOS], stop_token_ids=both, ignore_eos=True) == ("x", "stop", EOS, 2)


def test_a_stop_string_may_begin_and_end_inside_tokens(tokenizer: Tokenizer) -> None:
    tokens = ids("The quick brown fox jumps")
    for stop in ("ick bro", "k", "quick brown fox", "s", "The"):
        start = "The quick brown fox jumps".index(stop)
        text, reason, matched, _ = read(tokenizer, tokens, stop=("nothing", stop))
        assert (text, reason, matched) == ("The quick brown fox jumps"[:start], "stop", stop)
        text, *_ = read(tokenizer, tokens, stop=(stop,), include_stop=True)
        assert text == "The quick brown fox jumps"[: start + len(stop)]


def test_below_the_minimum_nothing_ends_the_text_but_the_length(tokenizer: Tokenizer) -> None:
    letter = ids("x")[0]
    tokens = [letter, EOS, letter, letter, EOS]
    assert read(tokenizer, tokens, min_tokens=3) == ("xxx", "stop", None, 5)
    assert read(tokenizer, tokens, min_tokens=3, stop=("xx",)) == ("", "stop", "xx", 3)
    assert read(tokenizer, [letter] * 5, min_tokens=3, stop=("x",)) == ("xx", "stop", "x", 3)
    stop = frozenset({letter})
    assert read(tokenizer, tokens, min_tokens=3, stop_token_ids=stop) == ("x", "stop", letter, 3)
    assert read(tokenizer, tokens, min_tokens=5, max_tokens=4) == ("xxx", "length", None, 4)


def test_a_stop_wins_over_the_length(tokenizer: Tokenizer) -> None:
    tokens = ids("xyz")
    assert read(tokenizer, tokens, max_tokens=len(tokens), stop=("z",))[:3] == ("xy", "stop", "z")
    assert read(tokenizer, tokens, max_tokens=len(tokens), stop=("z!",))[:3] == ("xyz", "length", None)


def test_an_unfinished_character_is_shown_at_the_end_and_may_complete_a_stop_string(
    tokenizer: Tokenizer,
) -> None:
    half = next(each for each in range(PLAIN.get_vocab_size()) if TOKEN_BYTES.of(each) == b"\xe4")
    assert read(tokenizer, [ids("x")[0], half], max_tokens=2)[:2] == ("x\ufffd", "length")
    assert read(tokenizer, [ids("x")[0], half, EOS])[:2] == ("x\ufffd", "stop")
    assert read(tokenizer, [ids("x")[0], half], max_tokens=2, stop=("\ufffd",))[:3] == ("x", "stop", "\ufffd")


def test_control_tokens_are_shown_on_demand_with_a_space_between_neighbours(tokenizer: Tokenizer) -> None:
    tokens = [START, START, *ids("x"), START, START]
    name = "<|im_start|>"
    assert read(tokenizer, tokens)[0] == "x"
    assert read(tokenizer, tokens, skip_special_tokens=False)[0] == f"{name} {name}x{name} {name}"
    close = read(tokenizer, tokens, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert close[0] == f"{name}{name}x{name}{name}"


def test_enforced_tokens_end_where_they_end(tokenizer: Tokenizer) -> None:
    tokens = [*ids("stop here"), EOS]
    fields = {"enforced": tuple(tokens), "stop": ("here",), "stop_token_ids": frozenset({tokens[0]})}
    assert read(tokenizer, tokens, **fields) == ("stop here", "stop", None, len(tokens))
    cut = read(tokenizer, tokens, **fields, max_tokens=len(tokens) - 2)
    assert cut[1:] == ("length", None, len(tokens) - 2)
    assert cut[0] == PLAIN.decode(tokens[:-2])


@given(st.text(min_size=1, max_size=40), st.lists(st.text(min_size=1, max_size=3), max_size=3), st.booleans())
def test_the_text_is_the_decoding_up_to_the_first_stop_string(
    tokenizer: Tokenizer, text: str, stops: list[str], included: bool
) -> None:
    tokens = ids(text)
    shown, reason, matched, produced = read(
        tokenizer, tokens, max_tokens=len(tokens), stop=tuple(stops), include_stop=included
    )
    whole = PLAIN.decode(tokens[:produced], skip_special_tokens=True)
    if matched is None:
        assert (shown, reason) == (whole, "length")
        assert not any(stop in whole for stop in stops)
    else:
        assert (reason, matched in stops) == ("stop", True)
        start = min(whole.index(stop) for stop in stops if stop in whole)
        assert whole[start:].startswith(str(matched))
        assert shown == whole[: start + (len(str(matched)) if included else 0)]
