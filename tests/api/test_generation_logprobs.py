"""Log probabilities: their shapes, their numbers, and what evaluation harnesses need of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.api.asking import PROMPT, chat, complete, content, text, tokens_of
from tests.service import Service

RAINBOW = "Repeat exactly: 🌈 naïve café 你好"


def test_a_chats_entries_are_those_of_its_tokens(service: Service) -> None:
    answer = chat(
        service,
        messages=[{"role": "user", "content": RAINBOW}],
        max_tokens=40,
        logprobs=True,
        top_logprobs=20,
        temperature=0,
    )

    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == answer["usage"]["completion_tokens"]
    spelled = b"".join(bytes(entry["bytes"]) for entry in entries)
    if answer["choices"][0]["finish_reason"] == "stop":
        assert spelled.endswith(b"<|im_end|>")
        spelled = spelled.removesuffix(b"<|im_end|>")
    assert spelled.decode("utf-8", "replace") == content(answer)
    for entry in entries:
        assert entry["token"] == bytes(entry["bytes"]).decode("utf-8", "replace")
        best = entry["top_logprobs"]
        assert len(best) == 20
        values = [each["logprob"] for each in best]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-3
        assert all(-9999 <= value <= 0 for value in [*values, entry["logprob"]])
        # Greedy: the token is the best one, and its number the same number.
        assert entry["logprob"] == values[0]
        assert entry["token"] == best[0]["token"]


def test_a_sampled_token_may_be_none_of_the_best(service: Service) -> None:
    answer = chat(service, logprobs=True, top_logprobs=1, temperature=2, seed=3, max_tokens=12)

    entries = answer["choices"][0]["logprobs"]["content"]
    assert all(len(entry["top_logprobs"]) == 1 for entry in entries)
    assert any(entry["top_logprobs"][0]["token"] != entry["token"] for entry in entries)
    assert all(entry["logprob"] <= entry["top_logprobs"][0]["logprob"] for entry in entries)


def test_without_top_logprobs_the_best_are_an_empty_list(service: Service) -> None:
    for fields in ({}, {"top_logprobs": 0}, {"top_logprobs": None}):
        entries = chat(service, logprobs=True, max_tokens=2, **fields)["choices"][0]["logprobs"]["content"]
        assert [entry["top_logprobs"] for entry in entries] == [[]] * len(entries)
    assert chat(service, max_tokens=2)["choices"][0]["logprobs"] is None


def test_the_tokens_of_a_cut_stop_string_count_and_have_entries(service: Service) -> None:
    whole = chat(service, temperature=0, max_tokens=16)
    stop = content(whole)[4:9]
    cut = chat(service, temperature=0, max_tokens=16, stop=stop, logprobs=True)

    entries = cut["choices"][0]["logprobs"]["content"]
    assert len(entries) == cut["usage"]["completion_tokens"]
    spelled = b"".join(bytes(entry["bytes"]) for entry in entries).decode()
    assert spelled.startswith(content(cut) + stop)


def test_a_completions_lists_go_together(service: Service) -> None:
    answer = complete(service, logprobs=3, max_tokens=12, temperature=0)

    lists = answer["choices"][0]["logprobs"]
    assert {len(items) for items in lists.values()} == {answer["usage"]["completion_tokens"]}
    words = text(answer)
    for token, offset in zip(lists["tokens"], lists["text_offset"], strict=True):
        assert words[offset : offset + len(token)] == token
    for value, best in zip(lists["token_logprobs"], lists["top_logprobs"], strict=True):
        assert 3 <= len(best) <= 4
        assert value == max(best.values())


def test_logprobs_0_has_the_sampled_token_alone(service: Service) -> None:
    lists = complete(service, logprobs=0, max_tokens=4)["choices"][0]["logprobs"]

    for token, value, best in zip(
        lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True
    ):
        assert best == {token: value}


def test_offsets_count_characters_not_pieces_of_them(service: Service) -> None:
    ids = tokens_of(service, RAINBOW)
    answer = complete(service, prompt=ids, echo=True, logprobs=0, max_tokens=1, temperature=0)

    lists = answer["choices"][0]["logprobs"]
    offsets = lists["text_offset"]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert offsets[len(ids)] == len(RAINBOW)
    for token, offset in zip(lists["tokens"], offsets, strict=True):
        if "\N{REPLACEMENT CHARACTER}" not in token and token != "<|endoftext|>":
            assert text(answer)[offset : offset + len(token)] == token


def test_echoed_logprobs_are_those_of_a_chain_of_single_steps(service: Service) -> None:
    ids = tokens_of(service, "The capital of France is Paris.")
    answer = complete(service, prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0)
    lists = answer["choices"][0]["logprobs"]
    chained: list[float] = []
    for place in range(1, len(ids)):
        step = complete(
            service, prompt=ids[:place], enforced_str=lists["tokens"][place], max_tokens=1, logprobs=0
        )["choices"][0]["logprobs"]
        assert step["tokens"] == lists["tokens"][place : place + 1]
        chained += step["token_logprobs"]

    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    assert len(lists["tokens"]) == len(ids) + 1
    assert lists["token_logprobs"][1:-1] == pytest.approx(chained, abs=1e-3)


def test_an_evaluation_harness_gets_what_it_asks_for(service: Service) -> None:
    """As lm-eval scores continuations: token prompts, many at once, the last entry is the generated one."""
    texts = ["The sky is blue", "Water is wet and fire is hot", "2 + 2 = 4", "A"]
    prompts = [tokens_of(service, each) for each in texts]
    answer = complete(service, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0)

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for ids, words, choice in zip(prompts, texts, answer["choices"], strict=True):
        lists = choice["logprobs"]
        assert len(lists["token_logprobs"]) == len(ids) + 1
        assert "".join(lists["tokens"][:-1]) == words
        for value, best in zip(lists["token_logprobs"][1:], lists["top_logprobs"][1:], strict=True):
            assert value <= max(best.values())
        assert lists["token_logprobs"][-1] == max(lists["top_logprobs"][-1].values())
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_the_generated_entry_is_there_also_when_it_is_the_end(service: Service) -> None:
    end = tokens_of(service, "<|im_end|>")
    assert len(end) == 1
    answer = complete(
        service, echo=True, logprobs=1, max_tokens=1, temperature=0, logit_bias={str(end[0]): 100}
    )

    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"] + 1
    assert choice["logprobs"]["tokens"][-1] == "<|im_end|>"
    assert choice["logprobs"]["text_offset"][-1] == len(PROMPT)


def test_a_prompt_can_be_scored_without_producing_anything(service: Service) -> None:
    scored = complete(service, echo=True, logprobs=2, max_tokens=0)
    longer = complete(service, echo=True, logprobs=2, max_tokens=1, temperature=0)
    alone = complete(service, echo=True, max_tokens=0, n=2)

    assert text(scored) == PROMPT
    assert scored["choices"][0]["finish_reason"] == "length"
    assert scored["usage"]["completion_tokens"] == 0
    first, second = scored["choices"][0]["logprobs"], longer["choices"][0]["logprobs"]
    assert first["tokens"] == second["tokens"][:-1]
    assert first["token_logprobs"][1:] == pytest.approx(second["token_logprobs"][1:-1], abs=1e-3)
    assert [choice["text"] for choice in alone["choices"]] == [PROMPT, PROMPT]
    assert alone["choices"][0]["logprobs"] is None


def test_prompt_logprobs_are_by_token_id_with_ranks(service: Service) -> None:
    ids = tokens_of(service, PROMPT)
    answer = complete(service, prompt=ids, prompt_logprobs=2, max_tokens=1)
    entries = answer["choices"][0]["prompt_logprobs"]

    assert entries[0] is None
    assert len(entries) == len(ids)
    for token_id, entry in zip(ids[1:], entries[1:], strict=True):
        assert 2 <= len(entry) <= 3
        own = entry[str(token_id)]
        assert set(own) == {"logprob", "rank", "decoded_token"}
        assert own["rank"] >= 1
        by_rank = sorted(entry.values(), key=lambda each: each["rank"])
        assert [each["rank"] for each in by_rank[:2]] == [1, 2]
        assert by_rank[0]["logprob"] == max(each["logprob"] for each in entry.values())
    assert "".join(e[str(i)]["decoded_token"] for i, e in zip(ids[1:], entries[1:], strict=True)) in PROMPT


def test_a_chats_prompt_logprobs_stand_beside_its_choices(service: Service) -> None:
    answer = chat(service, prompt_logprobs=1, n=2, temperature=1)

    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["prompt_logprobs"][0] is None
    assert chat(service)["prompt_logprobs"] is None


@pytest.mark.parametrize("fields", [{"n": 3}, {"n": 2, "best_of": 4}, {"n": 2, "temperature": 0}], ids=str)
def test_every_choice_of_a_prompt_echoes_the_same_numbers(service: Service, fields: dict[str, Any]) -> None:
    asked = {"prompt": ["One two three", "Four"], "echo": True, "logprobs": 1, "max_tokens": 2, **fields}
    choices = complete(service, **{"temperature": 1, **asked})["choices"]

    per_prompt = len(choices) // 2
    prompts = [tokens_of(service, each) for each in asked["prompt"]]
    for index, choice in enumerate(choices):
        place = index // per_prompt
        count = len(prompts[place])
        first = choices[place * per_prompt]["logprobs"]["token_logprobs"][:count]
        assert choice["logprobs"]["token_logprobs"][:count] == first
        assert first[0] is None
