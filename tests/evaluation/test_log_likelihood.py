"""An evaluation over HTTP has the numbers of the model's graph run whole, prompt by prompt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import model_packs.samples
from tests.api.asking import chat, content, tokens_of
from tests.evaluation.harness import Pair, log_likelihoods
from tests.evaluation.reference import Reference
from tests.service import CHAT, Service

SAMPLE = Path(model_packs.samples.__file__).with_name("english.txt")
# Nats per continuation. Prompts are computed in chunks and in batches here, whole and alone there.
# How far the log probabilities of decoded tokens may be from those of the same tokens as a prompt.
DECODED = 0.3
TOLERANCE = 1e-2
LONGEST_CONTEXT = 300


@pytest.fixture(scope="module")
def tokens(service: Service) -> list[int]:
    return tokens_of(service, SAMPLE.read_text("utf-8"))


@pytest.fixture(scope="module")
def reference(service: Service) -> Reference:
    return Reference(service.chat_graph(CHAT))


def pairs_of(tokens: list[int]) -> list[Pair]:
    """Cut pairs of all sizes out of the sample: one token of context or hundreds, one token after it or 24."""
    draw = random.Random(23)
    pairs = [Pair(tokens[:1], tokens[1:2]), Pair(tokens[:1], tokens[1:25])]
    for _ in range(22):
        length = round(LONGEST_CONTEXT ** draw.random())
        start = draw.randrange(len(tokens) - length - 24)
        middle = start + length
        pairs.append(Pair(tokens[start:middle], tokens[middle : middle + draw.choice([1, 2, 5, 12, 24])]))
    return pairs


def test_log_likelihoods_are_those_of_the_graph(
    service: Service, tokens: list[int], reference: Reference
) -> None:
    pairs = pairs_of(tokens)
    with service.http as http:
        found = log_likelihoods(http, CHAT, pairs)

    for pair, (logprob, is_greedy) in zip(pairs, found, strict=True):
        expected, margin = reference.likelihood(pair)
        assert logprob == pytest.approx(expected.logprob, abs=TOLERANCE)
        if margin > TOLERANCE:
            assert is_greedy == expected.is_greedy


def test_the_order_and_company_of_pairs_does_not_matter(service: Service, tokens: list[int]) -> None:
    pairs = pairs_of(tokens)[:9]
    with service.http as http:
        forward = log_likelihoods(http, CHAT, pairs)
        backward = log_likelihoods(http, CHAT, pairs[::-1])[::-1]
        alone = log_likelihoods(http, CHAT, pairs[4:5])

    for one, other in zip(forward, backward, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
    assert alone[0].logprob == pytest.approx(forward[4].logprob, abs=TOLERANCE)


def test_what_greedy_decoding_produced_is_greedy(
    service: Service, tokens: list[int], reference: Reference
) -> None:
    contexts = [tokens[:20], tokens[100:101], tokens[400:600]]
    pairs = []
    with service.http as http:
        for context in contexts:
            body = {"model": CHAT, "prompt": context, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            text = http.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"]
            pairs.append(Pair(context, tokens_of(service, text)))
        found = log_likelihoods(http, CHAT, pairs)

    for pair, (_, is_greedy) in zip(pairs, found, strict=True):
        expected, margin = reference.likelihood(pair)
        assert is_greedy == expected.is_greedy or margin < TOLERANCE
    assert any(likelihood.is_greedy for likelihood in found)


def test_what_ordinary_prompts_left_in_memory_changes_no_score(
    service: Service, tokens: list[int], reference: Reference
) -> None:
    """A scored prompt is computed whole, however much of it is cached already."""
    pair = Pair(tokens[700:950], tokens[950:962])
    with service.http as http:
        body = {"model": CHAT, "prompt": pair.context + pair.continuation, "max_tokens": 1}
        for _ in range(2):
            http.post("/v1/completions", json=body).raise_for_status()
        (found,) = log_likelihoods(http, CHAT, [pair])

    assert found.logprob == pytest.approx(reference.likelihood(pair)[0].logprob, abs=TOLERANCE)


def test_a_generated_end_is_an_entry_that_does_not_count(service: Service, reference: Reference) -> None:
    # Which of them the model ends soon differs between processors.
    for words in ("Say hi.", "Say yes.", "Hello!", "What is 2 + 2?", "Name one colour.", "Goodbye."):
        messages = [{"role": "user", "content": words}]
        said = chat(service, messages=messages, temperature=0, max_tokens=100)
        if said["choices"][0]["finish_reason"] == "stop":
            break
    assert said["choices"][0]["finish_reason"] == "stop"
    with service.http as http:
        asked = http.post("/tokenize", json={"model": CHAT, "messages": messages}).json()["tokens"]
        pair = Pair(asked, tokens_of(service, content(said)))
        whole = {"model": CHAT, "prompt": [*pair.context, *pair.continuation], "temperature": 0}
        body = {**whole, "max_tokens": 1, "logprobs": 0}
        ended = http.post("/v1/completions", json=body).json()["choices"][0]
        (found,) = log_likelihoods(http, CHAT, [pair])

    assert (ended["text"], ended["finish_reason"]) == ("", "stop")
    assert ended["logprobs"]["tokens"] == ["<|im_end|>"]
    expected, margin = reference.likelihood(pair)
    # It was decoded token by token, which rounds otherwise than a prompt does.
    assert found.is_greedy or margin < DECODED
    assert found.logprob == pytest.approx(expected.logprob, abs=TOLERANCE)
