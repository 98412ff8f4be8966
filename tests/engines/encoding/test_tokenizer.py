"""Prefixes, pair templates and truncation against the tokenizers library itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from appliance.engines.encoding.tokenizer import (
    CHARACTERS_PER_TOKEN,
    CUT_MARGIN,
    TextTokenizer,
    longest_first,
)
from appliance.packs.errors import PackError
from tests.packs_fixture import built_pack


@pytest.fixture(scope="module")
def path() -> Path:
    return built_pack("ms-marco-minilm-l-12-v2") / "tokenizer.json"


PIECES = st.sampled_from(
    [
        "word ",
        "höher\n",
        "…",
        "中文字",
        "a" * 150,
        "\x1c",
        "\u00a0",
        "x.y,z ",
        "  \t",
        "un" * 40,
        "\U0001f600",
        "tail",
    ]
)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.tuples(PIECES, st.integers(1, 60)), max_size=12), count=st.integers(1, 40))
def test_the_first_tokens_of_a_prefix_are_those_of_the_whole_text(
    pieces: list[tuple[str, int]], count: int
) -> None:
    path = built_pack("ms-marco-minilm-l-12-v2") / "tokenizer.json"
    text = "".join(piece * times for piece, times in pieces)
    whole = Tokenizer.from_file(str(path))
    whole.no_truncation()
    # Of text with fewer tokens than this, the end is not read.
    read = text[: CHARACTERS_PER_TOKEN[-1] * count]
    if len(read) < len(text):
        assume(len(whole.encode(read, add_special_tokens=False)) >= count + CUT_MARGIN)
    expected = whole.encode(text, add_special_tokens=False).ids[:count]
    (got,) = TextTokenizer(path).first_tokens([text], count)
    assert got.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(first=st.integers(0, 60), second=st.integers(0, 60), context=st.integers(5, 64))
def test_pairs_are_cut_as_the_library_cuts_them(first: int, second: int, context: int) -> None:
    path = built_pack("ms-marco-minilm-l-12-v2") / "tokenizer.json"
    library = Tokenizer.from_file(str(path))
    library.enable_truncation(context, strategy="longest_first")
    expected = library.encode("a " * first, "b " * second)
    tokenizer = TextTokenizer(path)
    template = tokenizer.pair_template()
    budget = context - template.special_tokens
    keep_first, keep_second = longest_first(first, second, budget)
    (a,) = tokenizer.first_tokens(["a " * first], 100)
    (b,) = tokenizer.first_tokens(["b " * second], 100)
    pair = template.join(a[:keep_first], b[:keep_second])
    assert pair.ids.tolist() == expected.ids
    assert pair.type_ids is not None
    assert pair.type_ids.tolist() == expected.type_ids
    assert np.all(pair.ids < tokenizer.vocab_size)


def test_text_that_says_nothing_is_not_read_to_its_end(path: Path) -> None:
    blanks = " " * 100_000 + "end"
    (ids,) = TextTokenizer(path).first_tokens([blanks], 100)
    assert len(ids) == 0


def test_padding_and_truncation_of_the_file_are_switched_off(path: Path, tmp_path: Path) -> None:
    library = Tokenizer.from_file(str(path))
    library.enable_truncation(8)
    library.enable_padding(length=16)
    library.save(str(tmp_path / "tokenizer.json"))
    short, long = TextTokenizer(tmp_path / "tokenizer.json").encode(["one", "two " * 50])
    assert (len(short), len(long)) == (3, 52)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "WordPiece"}}'])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(PackError):
        TextTokenizer(tmp_path / "tokenizer.json")
