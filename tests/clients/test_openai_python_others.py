"""Text completions, embeddings and models with the official Python client."""

from __future__ import annotations

import base64
import struct
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.api.asking import tokens
from tests.clients.test_openai_python import MOUNTS, client_of
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service

PROMPT = "The colours of the rainbow are"
ASKED: dict[str, Any] = {"model": CHAT, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}


@pytest.mark.parametrize("mount", MOUNTS)
def test_a_completion_stream_adds_up_to_the_whole(service: Service, mount: str) -> None:
    client = client_of(service, mount)
    whole = client.completions.create(**ASKED)
    chunks = list(client.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))

    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert tokens(chunks[-1].usage) == tokens(whole.usage)
    assert whole.object == "text_completion"


def test_an_echo_with_logprobs_scores_the_prompt(client: OpenAI) -> None:
    answer = client.completions.create(**ASKED, echo=True, logprobs=3)

    choice = answer.choices[0]
    assert choice.text.startswith(PROMPT)
    assert choice.logprobs is not None
    assert answer.usage is not None
    lists = (
        choice.logprobs.tokens,
        choice.logprobs.token_logprobs,
        choice.logprobs.top_logprobs,
        choice.logprobs.text_offset,
    )
    assert {len(each or []) for each in lists} == {answer.usage.total_tokens}
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None


def test_prompts_n_and_best_of_give_the_choices_in_order(client: OpenAI) -> None:
    drawn: dict[str, Any] = {**ASKED, "temperature": 1, "seed": 3}
    both = client.completions.create(**{**drawn, "prompt": [PROMPT, "Once"]}, n=2, echo=True)
    four = client.completions.create(**drawn, n=4, logprobs=0)
    best = client.completions.create(**drawn, n=1, best_of=4, logprobs=0)

    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith(PROMPT) for choice in both.choices] == [True, True, False, False]
    sums = [sum(c.logprobs.token_logprobs or []) for c in four.choices if c.logprobs]
    assert best.choices[0].text == four.choices[sums.index(max(sums))].text


def test_a_suffix_is_refused_in_words(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="suffix is not currently supported"):
        client.completions.create(**ASKED, suffix="end")
    assert client.completions.create(**ASKED, suffix="").choices[0].text


def test_token_prompts_are_taken_as_they_are(client: OpenAI) -> None:
    answer = client.completions.create(**{**ASKED, "prompt": [[504, 2, 504], [0]]}, echo=True, logprobs=0)

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4


def test_embeddings_are_the_same_in_every_encoding(client: OpenAI) -> None:
    texts = ["one box", "two boxes", "один"]
    vectors = client.embeddings.create(model=EMBEDDING, input=texts)  # the client asks for base64
    floats = client.embeddings.create(model=EMBEDDING, input=texts, encoding_format="float")
    raw = client.embeddings.create(model=EMBEDDING, input=texts, encoding_format="base64")
    short = client.embeddings.create(model=EMBEDDING, input="one box", dimensions=64)

    for vector, same, text in zip(vectors.data, floats.data, raw.data, strict=True):
        packed = struct.pack(f"<{len(same.embedding)}f", *same.embedding)
        assert struct.pack(f"<{len(vector.embedding)}f", *vector.embedding) == packed
        assert base64.b64decode(str(text.embedding)) == packed
    assert [vector.index for vector in vectors.data] == [0, 1, 2]
    assert len(short.data[0].embedding) == 64
    assert vectors.usage.prompt_tokens == vectors.usage.total_tokens > 0


def test_models_can_be_listed_and_looked_up(client: OpenAI) -> None:
    assert {CHAT, EMBEDDING, RERANK, SPEECH} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(CHAT).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


async def test_the_asynchronous_client_completes_embeds_and_lists(service: Service) -> None:
    async with AsyncOpenAI(base_url=f"{service.base_url}/v1", api_key=service.key, max_retries=0) as client:
        whole = await client.completions.create(**ASKED)
        stream = await client.completions.create(**ASKED, stream=True)
        words = "".join([chunk.choices[0].text async for chunk in stream])
        vector = await client.embeddings.create(model=EMBEDDING, input="x")
        models = [model.id async for model in client.models.list()]

    assert words == whole.choices[0].text
    assert len(vector.data[0].embedding) == 384
    assert CHAT in models
