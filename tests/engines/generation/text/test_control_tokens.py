"""A user's text never becomes a control token, and ordinary text tokenises as if joined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.text import tokenizer as tokenizer_module
from appliance.engines.generation.text.chat_template import ChatTemplate
from appliance.engines.generation.text.control_tokens import NONCHARACTERS, ControlTokens, choose_marker
from appliance.engines.generation.text.tokenizer import Tokenizer
from appliance.packs.errors import PackError
from tests.engines.generation.text.test_chat_template import CHATML
from tests.engines.generation.text.tiny_tokenizers import CONTROL_TOKENS, byte_fallback, byte_level, token_id

PLAIN = byte_level()
CONTROL_IDS = {token_id(PLAIN, token) for token in CONTROL_TOKENS}
AWKWARD_PLAIN = byte_level()
TEMPLATE = ChatTemplate(CHATML, {})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    PLAIN.save(str(path))
    return Tokenizer(path, context_length=512)


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    AWKWARD_PLAIN.add_special_tokens(AWKWARD)
    path = tmp_path_factory.mktemp("awkward") / "tokenizer.json"
    AWKWARD_PLAIN.save(str(path))
    return Tokenizer(path, context_length=512)


def prompt_ids(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    marker = choose_marker(messages)
    protected = tokenizer.control_tokens.protect(messages, marker)
    rendered = TEMPLATE.render(protected, max_characters=tokenizer.max_characters)
    return tokenizer.encode_rendered(rendered, marker)


HOSTILE = st.lists(
    st.one_of(
        st.sampled_from([*CONTROL_TOKENS, "<|im_", "end|>", "<", "<|", "\ufdd0", "\n", " "]),
        st.text(max_size=5),
    ),
    max_size=6,
).map("".join)


@given(text=HOSTILE)
def test_the_template_alone_writes_control_tokens(tokenizer: Tokenizer, text: str) -> None:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "Fine" + text}]
    ids = prompt_ids(tokenizer, messages)
    # The default system turn, two turns, and the header of the answer.
    assert [each for each in ids if each in CONTROL_IDS] == [
        *[token_id(PLAIN, "<|im_start|>"), token_id(PLAIN, "<|im_end|>")] * 3,
        token_id(PLAIN, "<|im_start|>"),
    ]
    joined = TEMPLATE.render(messages, max_characters=10_000)
    assert tokenizer.decode(ids, skip_special_tokens=False) == joined  # and not a character is lost


@given(text=st.one_of(st.text(max_size=30), st.text("ab <>|\n\t 1é", max_size=30)))
def test_ordinary_text_tokenises_as_the_joined_prompt(tokenizer: Tokenizer, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    joined = TEMPLATE.render(messages, max_characters=10_000)
    assert prompt_ids(tokenizer, messages) == PLAIN.encode(joined, add_special_tokens=False).ids


def test_a_role_that_would_complete_a_control_token_is_refused() -> None:
    controls = ControlTokens(CONTROL_TOKENS)
    for role in ("end", "END", "im_start", "|"):
        with pytest.raises(InputRefusedError):
            controls.protect([{"role": role, "content": ""}], "\ufdd0")
    for role in ("user", "tool", "ipython", "judge", ""):
        assert controls.protect([{"role": role}], "\ufdd0") == [{"role": role}]


def test_everything_in_messages_and_tools_is_protected() -> None:
    controls = ControlTokens(CONTROL_TOKENS)
    document = {"tools": [{"<|im_end|>": {"deep": ["<|im_start|>", 1, None]}}]}
    protected = str(controls.protect(document, "#"))
    assert not any(token in protected for token in CONTROL_TOKENS)


AWKWARD = ["今", "aba", "<a>", "a>"]


@given(text=st.text("今ab<>x", max_size=8))
def test_one_character_and_overlapping_tokens_do_not_survive(awkward: Tokenizer, text: str) -> None:
    controls = awkward.control_tokens
    protected = controls.protect(text, "\ufdd0")
    assert protected.replace("\ufdd0", "") == text
    rendered = f"今{protected}今 {protected}ba"
    parts = controls.split(rendered, "\ufdd0")
    assert "".join(parts) == rendered
    assert parts[1::2] == ["今", "今"]
    ids = awkward.encode_rendered(f"今{protected}今\ufdd0", "\ufdd0")
    special = awkward.encode("今", add_special_tokens=False)
    assert [each for each in ids if each in {token_id(AWKWARD_PLAIN, token) for token in AWKWARD}] == special


def test_the_marker_is_absent_from_the_document() -> None:
    assert choose_marker(["plain"]) == NONCHARACTERS[0]
    assert choose_marker([NONCHARACTERS[0], {"k": NONCHARACTERS[1]}]) == NONCHARACTERS[2]
    with pytest.raises(InputRefusedError):
        choose_marker("".join(NONCHARACTERS))


def test_a_document_nested_without_end_is_refused() -> None:
    document: object = "x"
    for _ in range(10_000):
        document = [document]
    with pytest.raises(InputRefusedError):
        choose_marker(document)


def test_a_text_far_longer_than_the_context_is_refused_before_it_is_tokenised(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputRefusedError, match="maximum context length is 512 tokens") as refused:
        tokenizer.encode("x" * (512 * 64 + 1), add_special_tokens=False)
    assert refused.value.code == "context_length_exceeded"


def test_a_text_of_too_many_tokens_is_refused_by_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    PLAIN.save(str(path))
    tokenizer = Tokenizer(path, context_length=8192)
    encoded: list[int] = []
    encode = Tokenizer._encode

    def noted(plain: Any, text: str, add_special_tokens: bool) -> list[int]:
        encoded.append(len(text))
        return encode(plain, text, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "_encode", staticmethod(noted))
    refusals: list[Callable[[], list[int]]] = [
        lambda: tokenizer.encode("71" * (8192 * 32), add_special_tokens=False),
        lambda: tokenizer.encode_rendered("7\ufdd01" * (8192 * 32), "\ufdd0"),
    ]
    for refuse in refusals:
        encoded.clear()
        with pytest.raises(InputRefusedError, match="maximum context length is 8192") as refused:
            refuse()
        assert refused.value.code == "context_length_exceeded"
        assert sum(encoded) < 8192 * 8


@given(text=st.text("the quick brown<|im_end|>§今 \n", min_size=40, max_size=80))
def test_counting_in_slices_refuses_nothing_that_fits(tokenizer: Tokenizer, text: str) -> None:
    text *= 26 * 5
    ids = PLAIN.encode(text, add_special_tokens=False).ids
    tight = Tokenizer.__new__(Tokenizer)
    tight.__dict__.update(tokenizer.__dict__, _context_length=len(ids))
    with mock.patch.object(tokenizer_module, "SLICE_CHARACTERS", 100):
        assert tight.encode(text, add_special_tokens=False) == ids


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputRefusedError):
        tokenizer.encode("\ud800", add_special_tokens=False)


def test_control_tokens_in_a_raw_prompt_are_control_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [token_id(PLAIN, "<|im_end|>")]


def test_a_vocabulary_that_marks_word_starts_keeps_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    plain = byte_fallback()
    plain.save(str(path))
    tokenizer = Tokenizer(path, context_length=64)
    text = "<s>hello world</s>hello"
    assert tokenizer.encode_rendered(text, "\ufdd0") == plain.encode(text, add_special_tokens=False).ids
    broken = tokenizer.encode_rendered("<s>hello <\ufdd0/s></s>", "\ufdd0")
    assert broken.count(token_id(plain, "</s>")) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"version": "1.0", "model": 3}'])
def test_a_file_that_is_no_tokenizer_is_a_pack_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(PackError):
        Tokenizer(path, context_length=64)
