"""n, best_of, seeds and beam search: which choices a request gets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.asking import PROMPT, chat, complete, content, post_completion, text
from tests.service import Service

SAMPLED: dict[str, Any] = {"temperature": 1, "seed": 9, "max_tokens": 10}


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def summed(choice: dict[str, Any]) -> float:
    return float(sum(choice["logprobs"]["token_logprobs"]))


def test_each_choice_has_a_random_stream_of_its_own(service: Service) -> None:
    once = complete(service, n=4, **SAMPLED)
    again = complete(service, n=4, **SAMPLED)

    assert texts(once) == texts(again)
    assert len(set(texts(once))) == 4
    assert [choice["index"] for choice in once["choices"]] == [0, 1, 2, 3]
    # The first choices do not depend on how many follow.
    assert texts(complete(service, n=2, **SAMPLED)) == texts(once)[:2]
    assert texts(complete(service, n=4, **{**SAMPLED, "seed": 10})) != texts(once)


def test_choices_are_prompt_major_and_prompts_count_once(service: Service) -> None:
    prompts = ["The sea", "Two and two", "Paris"]
    answer = complete(service, prompt=prompts, n=2, echo=True, **SAMPLED)

    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for index, choice in enumerate(answer["choices"]):
        assert choice["text"].startswith(prompts[index // 2])
    alone = [complete(service, prompt=prompt, max_tokens=1)["usage"]["prompt_tokens"] for prompt in prompts]
    assert answer["usage"]["prompt_tokens"] == sum(alone)


def test_one_prompt_twice_gives_two_texts_that_repeat(service: Service) -> None:
    once = complete(service, prompt=["Once", "Once"], **SAMPLED)

    assert texts(once)[0] != texts(once)[1]
    assert texts(complete(service, prompt=["Once", "Once"], **SAMPLED)) == texts(once)


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_seed_every_answer_is_another(service: Service, seed: int | None) -> None:
    asked = {**SAMPLED, "seed": seed, "n": 3}
    found = texts(complete(service, **asked)) + texts(complete(service, **asked))

    assert len(set(found)) == 6


def test_seeds_beyond_64_bits_are_clamped(service: Service) -> None:
    largest = texts(complete(service, **{**SAMPLED, "seed": (1 << 63) - 1}))

    assert texts(complete(service, **{**SAMPLED, "seed": 1 << 80})) == largest
    assert texts(complete(service, **{**SAMPLED, "seed": -(1 << 80)})) != largest


def test_greedy_choices_are_the_same_and_all_count(service: Service) -> None:
    one = complete(service, temperature=0, max_tokens=6)
    three = complete(service, temperature=0, max_tokens=6, n=3, logprobs=1)

    assert texts(three) == texts(one) * 3
    assert three["choices"][0]["logprobs"] == three["choices"][2]["logprobs"]
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert texts(complete(service, temperature=1e-6, max_tokens=6, seed=3)) == texts(one)


def test_best_of_returns_the_likeliest(service: Service) -> None:
    every = complete(service, n=6, logprobs=0, **SAMPLED)["choices"]
    best = complete(service, n=2, best_of=6, logprobs=0, **SAMPLED)

    ranked = sorted(every, key=summed, reverse=True)
    assert texts(best) == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == sum(
        len(choice["logprobs"]["tokens"]) for choice in best["choices"]
    )
    unasked = complete(service, n=1, best_of=6, **SAMPLED)
    assert unasked["choices"][0]["logprobs"] is None
    assert texts(unasked) == texts(best)[:1]


def test_best_of_is_for_chats_too(service: Service) -> None:
    asked = {**SAMPLED, "logprobs": True}
    every = chat(service, n=4, **asked)["choices"]
    best = chat(service, best_of=4, **asked)["choices"]

    sums = [sum(entry["logprob"] for entry in choice["logprobs"]["content"]) for choice in every]
    assert best[0]["message"]["content"] == every[sums.index(max(sums))]["message"]["content"]
    assert len(best) == 1


def test_a_beam_search_finds_no_worse_than_greedy(service: Service) -> None:
    greedy = complete(service, temperature=0, max_tokens=8, logprobs=0, ignore_eos=True)
    asked = {"use_beam_search": True, "best_of": 4, "temperature": 0, "max_tokens": 8, "logprobs": 0}
    found = complete(service, n=4, ignore_eos=True, **asked)

    def score(answer: dict[str, Any], choice: dict[str, Any]) -> float:
        length: int = answer["usage"]["prompt_tokens"] + len(choice["logprobs"]["tokens"])
        return summed(choice) / length

    scores = [score(found, choice) for choice in found["choices"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] >= score(greedy, greedy["choices"][0]) - 1e-9
    assert len(set(texts(found))) == 4
    again = complete(service, n=2, ignore_eos=True, **asked)
    assert texts(again) == texts(found)[:2]
    assert again["usage"]["completion_tokens"] == 16


def test_a_beam_search_of_several_prompts_has_the_choices_of_each(service: Service) -> None:
    asked = {"use_beam_search": True, "n": 2, "temperature": 0, "max_tokens": 4}
    both = complete(service, prompt=["The sea", "Paris"], **asked)

    assert texts(both)[:2] == texts(complete(service, prompt="The sea", **asked))
    assert texts(both)[2:] == texts(complete(service, prompt="Paris", **asked))


def test_beams_echo_and_score_their_prompt(service: Service) -> None:
    answer = complete(service, use_beam_search=True, n=2, temperature=0, max_tokens=3, echo=True, logprobs=1)

    for choice in answer["choices"]:
        assert choice["text"].startswith(PROMPT)
        assert len(choice["logprobs"]["tokens"]) >= answer["usage"]["prompt_tokens"] + 1
        assert choice["logprobs"]["token_logprobs"][0] is None


def test_length_penalty_and_early_stopping_are_taken_by_beams(service: Service) -> None:
    asked: dict[str, Any] = {"use_beam_search": True, "n": 3, "temperature": 0, "max_tokens": 24}
    ends: list[dict[str, Any]] = [{"length_penalty": 0.0}, {"length_penalty": 3.0}, {"early_stopping": True}]
    found = [
        chat(service, messages=[{"role": "user", "content": "Say hi."}], **asked, **each) for each in ends
    ]

    lengths = [answer["usage"]["completion_tokens"] for answer in found]
    assert lengths[0] <= lengths[1]
    assert all(content(answer) for answer in found)


def test_what_a_seed_gives_does_not_depend_on_the_company(service: Service) -> None:
    from concurrent.futures import ThreadPoolExecutor

    alone = text(complete(service, **SAMPLED))
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(complete, service, prompt=f"Number {i}", n=2, max_tokens=12) for i in range(3)]
        mine = pool.submit(complete, service, **SAMPLED)
        assert text(mine.result()) == alone
        assert all(other.result()["choices"] for other in others)


def test_too_many_sequences_are_refused_as_one(service: Service) -> None:
    response = post_completion(service, prompt=["a"] * 100, n=5, best_of=11, temperature=1)

    assert response.status_code == 400
    assert "at most 1024 sequences" in response.json()["error"]["message"]
