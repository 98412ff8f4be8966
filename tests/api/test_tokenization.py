"""The chat model's tokenizer over HTTP, as clients of vLLM use it."""

from __future__ import annotations

from typing import Any

import httpx
import jinja2.sandbox
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from tests.service import CHAT, EMBEDDING, Service

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Что такое 你好 🙂?"},
]


CHARACTERS = st.characters(max_codepoint=0x3FFFF, exclude_categories=["C"], include_characters="\n\t")


def post(service: Service, path: str, **fields: Any) -> httpx.Response:
    with service.http as http:
        return http.post(path, json=fields)


def tokens(service: Service, **fields: Any) -> list[int]:
    response = post(service, "/tokenize", **fields)
    assert response.status_code == 200, response.text
    assert response.json()["count"] == len(response.json()["tokens"])
    assert response.json()["max_model_len"] == 8192
    found: list[int] = response.json()["tokens"]
    return found


@settings(max_examples=40)
# The vocabulary lacks some control characters, and some bytes that no assigned character has.
@given(text=st.text(CHARACTERS, max_size=200))
def test_a_text_comes_back_from_its_tokens(service: Service, text: str) -> None:
    ids = tokens(service, prompt=text, add_special_tokens=False)

    assert post(service, "/detokenize", tokens=ids).json() == {"prompt": text}


def test_the_model_may_be_named_and_is_the_chat_model_otherwise(service: Service) -> None:
    assert tokens(service, prompt="one two", model=CHAT) == tokens(service, prompt="one two")
    named = post(service, "/detokenize", tokens=[1, 2, 3], model=CHAT)
    assert named.json() == post(service, "/detokenize", tokens=[1, 2, 3], model=None).json()


def test_a_prompts_tokens_are_those_that_completions_count(service: Service, client: OpenAI) -> None:
    answer = client.completions.create(model=CHAT, prompt="Once upon a time", max_tokens=1)
    assert answer.usage is not None

    assert len(tokens(service, prompt="Once upon a time")) == answer.usage.prompt_tokens


def test_messages_make_the_prompt_that_chat_counts(service: Service, client: OpenAI) -> None:
    ids = tokens(service, messages=MESSAGES)
    answer = client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=1)  # type: ignore[arg-type]
    assert answer.usage is not None

    assert len(ids) == answer.usage.prompt_tokens
    without = tokens(service, messages=MESSAGES, add_generation_prompt=False)
    assert ids[: len(without)] == without
    assert len(without) < len(ids)


def test_control_tokens_are_one_token_and_keep_their_name(service: Service) -> None:
    ids = tokens(service, prompt="<|im_end|>", add_special_tokens=False)

    assert len(ids) == 1
    assert post(service, "/detokenize", tokens=ids).json() == {"prompt": "<|im_end|>"}


def test_a_client_renders_the_same_prompt_from_what_the_info_says(service: Service) -> None:
    with service.http as http:
        info = http.get("/tokenizer_info").json()
        assert http.get("/tokenizer_info", params={"model": CHAT}).json() == info
    template = jinja2.sandbox.SandboxedEnvironment().from_string(info["chat_template"])
    rendered = template.render(messages=MESSAGES, add_generation_prompt=True)

    assert {"eos_token", "bos_token", "pad_token", "chat_template", "tokenizer_class"} <= set(info)
    assert info["eos_token"] == info["pad_token"] == "<|im_end|>"
    assert tokens(service, prompt=rendered, add_special_tokens=False) == tokens(service, messages=MESSAGES)


def test_the_last_message_may_be_left_open(service: Service) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    opened = tokens(service, messages=messages, continue_final_message=True, add_generation_prompt=False)

    assert post(service, "/detokenize", tokens=opened).json()["prompt"].endswith("It is")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": None}),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}),
        ("/tokenize", {"prompt": ["a"]}),
        ("/tokenize", {"prompt": 5}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"messages": "a"}),
        ("/tokenize", {"messages": MESSAGES, "continue_final_message": True}),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        ("/tokenize", {"prompt": "a", "model": EMBEDDING}),
        ("/tokenize", {"prompt": "word " * 1_000_000}),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "perhaps"}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": "a"}),
        ("/detokenize", {"tokens": None}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [49_152]}),
        ("/detokenize", {"tokens": [2**70]}),
        ("/detokenize", {"tokens": [0.5]}),
        ("/detokenize", {"tokens": [[1]]}),
        ("/detokenize", {"tokens": [1] * 200_000}),
        ("/detokenize", {"tokens": [1], "model": EMBEDDING}),
    ],
)
def test_what_is_wrong_is_a_400(service: Service, path: str, fields: dict[str, Any]) -> None:
    response = post(service, path, **fields)

    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]
    assert len(response.content) < 3000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model", "prompt", "messages", "tokens", "add_special_tokens", "add_generation_prompt")


@settings(max_examples=60)
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUES),
    path=st.sampled_from(["/tokenize", "/detokenize"]),
)
def test_no_field_value_makes_a_server_error(service: Service, fields: dict[str, Any], path: str) -> None:
    with service.http as http:
        assert http.post(path, content=msgspec.json.encode(fields)).status_code < 500


def test_no_tokens_are_no_text(service: Service) -> None:
    assert post(service, "/detokenize", tokens=[]).json() == {"prompt": ""}
    assert tokens(service, prompt="", add_special_tokens=False) == []


def test_an_unknown_model_is_404(service: Service) -> None:
    assert post(service, "/tokenize", prompt="a", model="nope").status_code == 404
    assert post(service, "/detokenize", tokens=[1], model="nope").status_code == 404
    with service.http as http:
        assert http.get("/tokenizer_info", params={"model": "nope"}).status_code == 404


@pytest.mark.parametrize("body", [b"", b"[]", b'{"prompt": "\\ud800"}', b'{"prompt": ' + b"[" * 10_000])
def test_what_is_no_text_is_a_400(service: Service, body: bytes) -> None:
    with service.http as http:
        assert http.post("/tokenize", content=body).status_code == 400
