"""Every bound of the shared parameters: a value just inside is taken, one just outside is refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.asking import post_chat, post_completion
from tests.service import Service

BEAM: dict[str, Any] = {"use_beam_search": True, "best_of": 2, "temperature": 0}

# Fields that are taken together with these.
INSIDE: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 2},
    {"top_p": 1e-9},
    {"top_p": 1},
    {"top_k": -1},
    {"top_k": 1},
    {"top_k": 1 << 40},
    {"min_p": 0},
    {"min_p": 1},
    {"presence_penalty": -2},
    {"presence_penalty": 2},
    {"frequency_penalty": -2},
    {"frequency_penalty": 2},
    {"repetition_penalty": 1e-3},
    {"repetition_penalty": 2},
    {"seed": -(1 << 63)},
    {"seed": 1 << 90},
    {"seed": -1},
    {"n": 1, "best_of": 1},
    {"n": 3, "best_of": 3},
    {"n": 2, "temperature": 0},
    {"length_penalty": 1, "early_stopping": False},
    {**BEAM},
    {**BEAM, "length_penalty": 0.5, "early_stopping": True},
    {**BEAM, "length_penalty": -1e30, "early_stopping": "never"},
    {"stop": []},
    {"stop": "x"},
    {"stop": ["\x00" * 1024] * 64},
    {"stop_token_ids": [0, -5, 1 << 70]},
    {"min_tokens": 0},
    {"min_tokens": 2, "max_tokens": 2},
    {"max_tokens": 1},
    {"max_tokens": None, "max_completion_tokens": 1},
    {"logit_bias": {"5": 1000, "+6": -1000.5, "007": 0}},
    {"truncate_prompt_tokens": 1},
    {"truncate_prompt_tokens": 8192, "max_tokens": 1},
    {"prompt_logprobs": 0},
    {"prompt_logprobs": 20},
    {"response_format": {"type": "text"}},
    {"enforced_str": ""},
    {"ignore_eos": True, "skip_special_tokens": False, "spaces_between_special_tokens": False},
    {"include_stop_str_in_output": True},
    {"stream_options": None, "stream": False},
    {"user": {"any": "thing"}},
]

# Fields that are refused, the field that the error names, and a part of its text.
OUTSIDE: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": -1e-9}, "temperature", "temperature must be non-negative, got -1e-09."),
    ({"temperature": 2.001}, "temperature", "temperature must be in [0, 2], got 2.001."),
    ({"temperature": "nan"}, "temperature", "temperature must be a finite number"),
    ({"top_p": 0}, "top_p", "top_p must be in (0, 1], got 0"),
    ({"top_p": 1.001}, "top_p", "top_p must be in (0, 1], got 1.001."),
    ({"top_p": "inf"}, "top_p", "top_p must be a finite number"),
    ({"top_k": 0}, "top_k", "top_k must be -1 (disable), or at least 1, got 0."),
    ({"top_k": -2}, "top_k", "top_k must be -1 (disable), or at least 1, got -2."),
    ({"top_k": 5.5}, "top_k", "top_k"),
    ({"min_p": -0.001}, "min_p", "min_p must be in [0, 1], got -0.001."),
    ({"min_p": 1.001}, "min_p", "min_p must be in [0, 1], got 1.001."),
    ({"presence_penalty": -2.001}, "presence_penalty", "presence_penalty must be in [-2, 2], got -2.001."),
    ({"presence_penalty": 2.001}, "presence_penalty", "presence_penalty must be in [-2, 2], got 2.001."),
    ({"frequency_penalty": -2.001}, "frequency_penalty", "frequency_penalty must be in [-2, 2], got -2.001."),
    ({"frequency_penalty": 2.001}, "frequency_penalty", "frequency_penalty must be in [-2, 2], got 2.001."),
    ({"repetition_penalty": 0}, "repetition_penalty", "repetition_penalty must be in (0, 2], got 0"),
    ({"repetition_penalty": 2.001}, "repetition_penalty", "repetition_penalty must be in (0, 2], got 2.001."),
    ({"seed": "x"}, "seed", "seed"),
    ({"n": 0}, "n", "n must be at least 1, got 0."),
    ({"n": -1}, "n", "n must be at least 1, got -1."),
    ({"n": 129}, "n", "n must be at most 128, got 129."),
    ({"best_of": 0}, "best_of", "best_of must be greater than or equal to n, got n=1 and best_of=0."),
    ({"n": 3, "best_of": 2}, "best_of", "best_of must be greater than or equal to n, got n=3 and best_of=2."),
    ({"best_of": 129}, "best_of", "best_of must be at most 128, got 129."),
    ({"best_of": 2, "temperature": 0}, "best_of", "best_of must be 1 when using greedy sampling.Got 2."),
    (
        {"length_penalty": 1.1},
        "length_penalty",
        "length_penalty is not effective and must be the default value of 1.0 when not using beam search.",
    ),
    (
        {"early_stopping": True},
        "early_stopping",
        "early_stopping is not effective and must be False when not using beam search.",
    ),
    (
        {"use_beam_search": True, "temperature": 0},
        "best_of",
        "best_of must be greater than 1 when using beam search. Got 1.",
    ),
    ({**BEAM, "temperature": None}, "temperature", "temperature must be 0 when using beam search."),
    ({**BEAM, "temperature": 0.7}, "temperature", "temperature must be 0 when using beam search."),
    ({**BEAM, "top_p": 0.9}, "top_p", "top_p must be 1 when using beam search."),
    ({**BEAM, "top_k": 5}, "top_k", "top_k must be -1 when using beam search."),
    ({**BEAM, "enforced_str": "x"}, "enforced_str", "beam search"),
    ({**BEAM, "length_penalty": "nan"}, "length_penalty", "length_penalty must be a finite number"),
    ({**BEAM, "early_stopping": "soon"}, "early_stopping", "early_stopping"),
    ({"stop": ""}, "stop", "stop cannot contain an empty string."),
    ({"stop": ["a", ""]}, "stop", "stop cannot contain an empty string."),
    ({"stop": ["a"] * 65}, "stop", "stop may hold at most 64 strings, got 65."),
    ({"stop": "a" * 1025}, "stop", "stop may hold strings of at most 1024 characters, got 1025."),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]", "stop_token_ids"),
    ({"stop_token_ids": [1] * 10_001}, "stop_token_ids", "stop_token_ids may hold at most 10000 ids"),
    ({"min_tokens": -1}, "min_tokens", "min_tokens must be greater than or equal to 0, got -1."),
    (
        {"min_tokens": 9, "max_tokens": 8},
        "min_tokens",
        "min_tokens must be less than or equal to max_tokens=8, got 9.",
    ),
    ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0."),
    ({"max_tokens": -1}, "max_tokens", "max_tokens must be at least 1, got -1."),
    (
        {"max_completion_tokens": 0},
        "max_completion_tokens",
        "max_completion_tokens must be at least 1, got 0.",
    ),
    (
        {"logit_bias": {"a": 1}},
        "logit_bias",
        "Found token_id in logit_bias that is not an integer or string representing an integer",
    ),
    (
        {"logit_bias": {"49152": 1}},
        "logit_bias",
        "token_id 49152 in logit_bias contains out-of-vocab token id",
    ),
    (
        {"logit_bias": {"-1": 1}},
        "logit_bias",
        "token_id -1 in logit_bias contains out-of-vocab token id",
    ),
    ({"logit_bias": {"5": "nan"}}, "logit_bias", "finite number"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "truncate_prompt_tokens must be at least 1"),
    (
        {"truncate_prompt_tokens": 8193},
        "truncate_prompt_tokens",
        "truncate_prompt_tokens value is greater than max_model_len. Please, select a smaller truncation size.",
    ),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "`prompt_logprobs` must be a positive value."),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "Cannot request more than 20 logprobs."),
    (
        {"prompt_logprobs": 1, "stream": True},
        "prompt_logprobs",
        "`prompt_logprobs` are not available when `stream=True`.",
    ),
    ({"stream": "perhaps"}, "stream", "stream"),
]

CHAT_INSIDE: list[dict[str, Any]] = [
    {"n": 128, "max_tokens": 1},
    {"top_logprobs": 0},
    {"top_logprobs": None, "logprobs": True},
    {"top_logprobs": 20, "logprobs": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": False, "continue_final_message": True},
    {"add_special_tokens": True},
    {"chat_template_kwargs": {"name": "value"}, "documents": [{"text": "a"}]},
    {"reasoning_effort": "low", "reasoning_enabled": True},
    {"modalities": ["text"], "store": True, "metadata": {}, "service_tier": "auto", "verbosity": "low"},
    {"stream": True, "stream_options": {}},
]

CHAT_OUTSIDE: list[tuple[dict[str, Any], str, str]] = [
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "Cannot request more than 20 logprobs."),
    ({"top_logprobs": -1}, "top_logprobs", "`top_logprobs` must be a positive value."),
    ({"top_logprobs": 1}, "top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true."),
    (
        {"top_logprobs": 1, "logprobs": False},
        "top_logprobs",
        "when using `top_logprobs`, `logprobs` must be set to true.",
    ),
    ({"stream_options": {}}, "stream_options", "stream_options can only be set if stream is true"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
    ),
    ({"chat_template": "{{ messages }}"}, "chat_template", "`chat_template` is not accepted"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "cannot set `messages`"),
    ({"chat_template_kwargs": {str(i): i for i in range(65)}}, "chat_template_kwargs", "at most 64 names"),
    ({"documents": ["text"]}, "documents", "documents must be an array of objects."),
    ({"documents": [{}] * 1001}, "documents", "documents may hold at most 1000 documents, got 1001."),
    ({"echo": True, "max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0."),
    ({"messages": []}, "messages", "at least one message"),
]

COMPLETION_INSIDE: list[dict[str, Any]] = [
    {"best_of": 128, "max_tokens": 1},
    {"logprobs": 0},
    {"logprobs": 20},
    {"echo": True, "max_tokens": 0},
    {"suffix": ""},
    {"stream_options": {}},
    {"tools": [], "tool_choice": "auto"},
    {"tool_choice": "none"},
    {"add_special_tokens": False},
    {"prompt": ["a"] * 128, "max_tokens": 1},
]

COMPLETION_OUTSIDE: list[tuple[dict[str, Any], str, str]] = [
    ({"logprobs": -1}, "logprobs", "if passed, `logprobs` must be a positive value."),
    ({"logprobs": 21}, "logprobs", "Cannot request more than 20 logprobs."),
    ({"echo": True, "max_tokens": -1}, "max_tokens", "max_tokens must be at least 0, got -1."),
    ({"echo": True, "max_tokens": 0, "min_tokens": 1}, "min_tokens", "max_tokens=0, got 1."),
    ({"suffix": "end"}, "suffix", "suffix is not currently supported"),
    (
        {"stream_options": {"include_usage": True}},
        "stream_options",
        "Stream options can only be defined when stream is True.",
    ),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "tool_choice"),
    ({"prompt": ["a"] * 129}, "prompt", "prompt may hold at most 128 items, got 129."),
    ({"prompt": ["a"] * 9, "n": 128}, "n", "at most 1024 sequences"),
    ({"max_tokens": None, "min_tokens": 17}, "min_tokens", "max_tokens=16, got 17."),
]


def named(fields: dict[str, Any]) -> str:
    return ",".join(f"{name}={str(value)[:24]}" for name, value in fields.items())


@pytest.mark.parametrize("fields", [*INSIDE, *CHAT_INSIDE], ids=named)
def test_chat_takes_what_is_just_inside(service: Service, fields: dict[str, Any]) -> None:
    response = post_chat(service, **{"max_tokens": 2, **fields})

    assert response.status_code == 200, response.text


@pytest.mark.parametrize("fields", [*INSIDE, *COMPLETION_INSIDE], ids=named)
def test_completions_take_what_is_just_inside(service: Service, fields: dict[str, Any]) -> None:
    response = post_completion(service, **{"max_tokens": 2, **fields})

    assert response.status_code == 200, response.text


@pytest.mark.parametrize(("fields", "param", "words"), [*OUTSIDE, *CHAT_OUTSIDE], ids=str)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_chat_refuses_what_is_just_outside_before_the_first_byte(
    service: Service, fields: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    if stream and not fields.keys().isdisjoint({"stream_options", "prompt_logprobs"}):
        pytest.skip("streams have a rule of their own for it")
    response = post_chat(service, **{"stream": stream, **fields})

    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize(("fields", "param", "words"), [*OUTSIDE, *COMPLETION_OUTSIDE], ids=str)
def test_completions_refuse_what_is_just_outside(
    service: Service, fields: dict[str, Any], param: str, words: str
) -> None:
    response = post_completion(service, **fields)

    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_null_is_absent_for_every_optional_field(service: Service) -> None:
    optional: dict[str, Any] = dict.fromkeys(
        [
            *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
            *("repetition_penalty", "logit_bias", "seed", "n", "best_of", "use_beam_search"),
            *("length_penalty", "early_stopping", "max_completion_tokens", "min_tokens", "stop"),
            *("stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens"),
            *("spaces_between_special_tokens", "truncate_prompt_tokens", "add_special_tokens", "stream"),
            *("stream_options", "echo", "prompt_logprobs", "user", "response_format", "guided_json"),
            *("guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
            *("guided_whitespace_pattern", "tools", "tool_choice", "parallel_tool_calls", "enforced_str"),
            *("logprobs", "top_logprobs", "add_generation_prompt", "continue_final_message"),
            *("chat_template", "chat_template_kwargs", "documents", "functions", "function_call"),
            *("reasoning_effort", "reasoning_enabled", "suffix"),
        ]
    )
    assert post_chat(service, **optional).status_code == 200
    assert post_completion(service, **optional).status_code == 200


def test_numbers_and_booleans_may_be_written_as_text(service: Service) -> None:
    fields: dict[str, Any] = {
        "temperature": "0.5",
        "max_tokens": "3",
        "top_k": 5.0,
        "stream": "false",
        "ignore_eos": 1,
    }
    response = post_chat(service, **fields)

    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 3
