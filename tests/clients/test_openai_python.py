"""Chat with the official Python client: whole, streamed, parsed, asynchronous, and what it raises."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.api.asking import tokens
from tests.service import CHAT, Service

MOUNTS = ["/v1", "/compressa/v1", "/compactifai/v1"]
MESSAGES: list[Any] = [{"role": "user", "content": "Name three colours of the rainbow."}]
ASKED: dict[str, Any] = {"model": CHAT, "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
# Ends by itself: the helpers take an answer that the limit cut for a failure.
WORD = {"guided_regex": "[a-z]{9,20}"}


class Leg(pydantic.BaseModel):
    """One leg of a journey."""

    by: Literal["train", "ferry"]
    hours: int = pydantic.Field(ge=1, le=9)


class Journey(pydantic.BaseModel):
    """What the model must answer: a nested model, an optional field, a list, and a pattern."""

    town: Literal["Oslo", "Rome"]
    leg: Leg
    back: Leg | None
    code: str = pydantic.Field(pattern="^[A-Z]{3}$")
    days: list[Literal["mon", "tue"]] = pydantic.Field(min_length=1, max_length=2)


def client_of(service: Service, mount: str = "/v1", **options: Any) -> OpenAI:
    """Return a client of one mount that does not try again."""
    return OpenAI(
        base_url=service.base_url + mount,
        api_key=service.key,
        **{"max_retries": 0, "timeout": 120, **options},
    )


@pytest.mark.parametrize("mount", MOUNTS)
def test_a_stream_adds_up_to_the_whole_on_every_mount(service: Service, mount: str) -> None:
    client = client_of(service, mount)
    whole = client.chat.completions.create(**ASKED)
    chunks = list(
        client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
    )

    words = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert whole.choices[0].message.content == words
    assert whole.choices[0].message.role == chunks[0].choices[0].delta.role == "assistant"
    assert tokens(chunks[-1].usage) == tokens(whole.usage)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_stream_helper_tells_of_contents_and_logprobs(client: OpenAI) -> None:
    asked = {**ASKED, "logprobs": True, "top_logprobs": 2, "extra_body": WORD}
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**asked)

    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].logprobs is not None
    assert whole.choices[0].logprobs is not None
    assert final.choices[0].logprobs.content == whole.choices[0].logprobs.content
    assert tokens(final.usage) == tokens(whole.usage)
    kinds = {event.type for event in events}
    assert {
        "chunk",
        "content.delta",
        "content.done",
        "logprobs.content.delta",
        "logprobs.content.done",
    } <= kinds


def test_the_stream_helper_keeps_several_choices_apart(client: OpenAI) -> None:
    asked = {**ASKED, "n": 3, "temperature": 1, "seed": 5, "extra_body": WORD}
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**asked)

    words = [choice.message.content for choice in whole.choices]
    assert [choice.message.content for choice in final.choices] == words
    assert len(set(words)) == 3


def test_answers_are_parsed_into_the_models_of_the_caller(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=CHAT, messages=MESSAGES, response_format=Journey, max_tokens=200, temperature=0
    )
    with client.chat.completions.stream(
        model=CHAT, messages=MESSAGES, response_format=Journey, max_tokens=200, temperature=0
    ) as stream:
        streamed = stream.get_final_completion()

    journey = parsed.choices[0].message.parsed
    assert isinstance(journey, Journey)
    assert streamed.choices[0].message.parsed == journey


def test_an_answer_cut_by_the_limit_is_the_clients_own_error(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=CHAT, messages=MESSAGES, response_format=Journey, max_tokens=3)


def test_log_probabilities_are_typed(client: OpenAI) -> None:
    answer = client.chat.completions.create(**{**ASKED, "temperature": 1}, logprobs=True, top_logprobs=20)

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    spelled = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert spelled.removesuffix(b"<|im_end|>").decode() == answer.choices[0].message.content
    for entry in logprobs.content:
        values = [best.logprob for best in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-3


def test_parameters_beyond_the_clients_own_pass_in_the_extra_body(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=MESSAGES,
        max_completion_tokens=40,
        seed=1,
        stop=["\n\n"],
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logit_bias={"30": -5},
        user="somebody",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        extra_body={"guided_regex": "(red|blue), (one|two)", "top_k": 40, "min_p": 0.01},
    )

    assert answer.choices[0].message.content in ("red, one", "red, two", "blue, one", "blue, two")
    assert answer.choices[0].finish_reason == "stop"


def test_every_refusal_is_the_class_that_callers_catch(service: Service) -> None:
    client = client_of(service)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**{**ASKED, "temperature": 3})
    assert bad.value.param == "temperature"
    assert "must be in [0, 2]" in bad.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**{**ASKED, "max_tokens": 9000}, stream=True)
    assert long.value.code == "context_length_exceeded"
    assert "maximum context length" in str(long.value)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**{**ASKED, "model": "nothing"})
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client_of(service, "/compactifai/v1").chat.completions.create(**{**ASKED, "model": "nothing"})
    with pytest.raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="sk-nobody").models.list()
    assert stranger.value.code == "invalid_api_key"
    assert stranger.value.request_id


def test_a_time_out_is_the_clients_own_and_the_next_call_works(service: Service) -> None:
    long: dict[str, Any] = {**ASKED, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        client_of(service, timeout=0.5).chat.completions.create(**long)

    assert client_of(service).chat.completions.create(**ASKED).choices[0].message.content


def test_raw_responses_have_their_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**ASKED)
    named = client.chat.completions.with_raw_response.create(
        **ASKED, extra_headers={"x-request-id": "mine-1"}
    )

    assert raw.headers["x-request-id"] == raw.parse()._request_id
    assert raw.headers["content-type"].startswith("application/json")
    assert named.headers["x-request-id"] == "mine-1"
    with client.chat.completions.with_streaming_response.create(**ASKED, stream=True) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-request-id"]
        assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]


async def test_the_asynchronous_client_streams_many_at_once(service: Service) -> None:
    whole = service.openai.chat.completions.create(**ASKED).choices[0].message.content
    async with AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key=service.key, max_retries=0) as client:

        async def words() -> str:
            stream = await client.chat.completions.create(**ASKED, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        async def parsed() -> Any:
            answer = await client.chat.completions.parse(
                model=CHAT, messages=MESSAGES, response_format=Leg, max_tokens=100
            )
            return answer.choices[0].message.parsed

        found = await asyncio.gather(*(words() for _ in range(6)), parsed(), parsed())

    assert found[:6] == [whole] * 6
    assert all(isinstance(leg, Leg) for leg in found[6:])


def test_a_stream_can_be_left_early(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        **{**ASKED, "max_tokens": 4000}, stream=True, extra_body={"ignore_eos": True}
    )
    for place, _ in enumerate(stream):
        if place == 3:
            stream.close()
            break

    assert client.chat.completions.create(**ASKED).choices[0].message.content
