"""Every parameter of the generation routes has the effect that its contract says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.asking import (
    PROMPT,
    chat,
    chat_events,
    complete,
    content,
    joined_chat,
    post_chat,
    post_completion,
    text,
    tokens,
    tokens_of,
)
from tests.service import Service

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


def bias(service: Service, words: str, value: float) -> dict[str, float]:
    ids = tokens_of(service, words)
    assert len(ids) == 1
    return {str(ids[0]): value}


def longest_run(words: list[str]) -> int:
    return max(words.count(word) for word in set(words))


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_reduce_repetition(service: Service, name: str) -> None:
    asked = {**GREEDY, "prompt": "red red red red red red red red", "ignore_eos": True}
    plain = text(complete(service, **asked)).split()
    punished = text(complete(service, **asked, **{name: 2})).split()

    assert longest_run(punished) < longest_run(plain)


def test_a_negative_penalty_makes_it_repeat(service: Service) -> None:
    plain = text(complete(service, **GREEDY, ignore_eos=True)).split()
    repeating = text(complete(service, **GREEDY, ignore_eos=True, frequency_penalty=-2)).split()

    assert longest_run(repeating) > longest_run(plain)


def test_a_bias_forces_and_forbids_a_token(service: Service) -> None:
    forced = complete(service, **GREEDY, logit_bias=bias(service, " cat", 100), ignore_eos=True)
    assert text(forced) == " cat" * 24
    # More than 100 is 100, in both directions.
    clamped = complete(service, **GREEDY, logit_bias=bias(service, " cat", 1e9), ignore_eos=True)
    assert text(clamped) == text(forced)
    first = complete(service, **{**GREEDY, "max_tokens": 1}, logprobs=1)["choices"][0]["logprobs"]["tokens"][
        0
    ]
    forbidden = complete(service, **GREEDY, logit_bias=bias(service, first, -100), logprobs=0)
    assert first not in forbidden["choices"][0]["logprobs"]["tokens"]


def test_top_k_1_top_p_near_0_and_min_p_1_are_greedy(service: Service) -> None:
    greedy = text(complete(service, **GREEDY))
    for fields in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}):
        assert text(complete(service, **{**GREEDY, "temperature": 1.5}, **fields)) == greedy


def test_ignore_eos_goes_on_to_the_limit(service: Service) -> None:
    end = bias(service, "<|im_end|>", 100)
    ended = chat(service, max_tokens=8, logit_bias=end)
    ignored = chat(service, max_tokens=8, logit_bias=end, ignore_eos=True)

    assert (ended["usage"]["completion_tokens"], ended["choices"][0]["finish_reason"]) == (1, "stop")
    assert (ignored["usage"]["completion_tokens"], ignored["choices"][0]["finish_reason"]) == (8, "length")


def test_min_tokens_hold_every_end_back(service: Service) -> None:
    whole = text(complete(service, **GREEDY))
    asked: dict[str, Any] = {**GREEDY, "logit_bias": bias(service, "<|im_end|>", 30)}
    assert complete(service, **asked)["usage"]["completion_tokens"] < 5
    held = complete(service, **asked, min_tokens=5)
    assert held["usage"]["completion_tokens"] == 6
    stopped = complete(service, **GREEDY, stop=[whole[0]], min_tokens=5)
    assert stopped["usage"]["completion_tokens"] >= 5


def test_stop_tokens_end_the_text_and_are_the_reason(service: Service) -> None:
    tokens = complete(service, **GREEDY, logprobs=0)["choices"][0]["logprobs"]["tokens"]
    word = next(token for token in tokens[2:] if tokens.index(token) >= 2 and len(token) > 1)
    stop_id = tokens_of(service, word)[0]
    choice = complete(service, **GREEDY, stop_token_ids=[stop_id, 1 << 40])["choices"][0]

    assert choice["text"] == "".join(tokens[: tokens.index(word)])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop_id)
    kept = complete(service, **GREEDY, stop_token_ids=[stop_id], include_stop_str_in_output=True)
    assert text(kept) == choice["text"] + word


def test_a_stop_string_is_cut_or_kept(service: Service) -> None:
    whole = text(complete(service, **GREEDY))
    stop = whole[9:14]
    before = whole[: whole.index(stop)]
    cut = complete(service, **GREEDY, stop=["\x00never", stop])["choices"][0]
    kept = complete(service, **GREEDY, stop=stop, include_stop_str_in_output=True)

    assert (cut["text"], cut["finish_reason"], cut["stop_reason"]) == (before, "stop", stop)
    assert text(kept) == before + stop


def test_of_several_stops_the_first_in_the_text_counts(service: Service) -> None:
    whole = text(complete(service, **GREEDY))
    later, earlier = whole[12:15], whole[5:8]
    choice = complete(service, **GREEDY, stop=[later, earlier])["choices"][0]

    assert choice["stop_reason"] == earlier
    assert choice["text"] == whole[: whole.index(earlier)]


def test_a_stop_string_never_matches_in_the_prompt_or_its_echo(service: Service) -> None:
    choice = complete(service, **GREEDY, echo=True, stop=["rainbow"])["choices"][0]

    assert choice["text"].startswith(PROMPT)
    assert choice["text"][len(PROMPT) :]


def test_include_stop_without_stops_shows_no_end_token(service: Service) -> None:
    answer = chat(
        service,
        logit_bias=bias(service, "<|im_end|>", 100),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )

    assert content(answer) == ""


def test_special_tokens_can_be_shown_with_spaces_between(service: Service) -> None:
    asked: dict[str, Any] = {
        "logit_bias": bias(service, "<|im_end|>", 100),
        "ignore_eos": True,
        "max_tokens": 2,
        "skip_special_tokens": False,
    }
    assert text(complete(service, **asked)) == "<|im_end|> <|im_end|>"
    close = complete(service, **asked, spaces_between_special_tokens=False)
    assert text(close) == "<|im_end|><|im_end|>"
    assert text(complete(service, **{**asked, "skip_special_tokens": True})) == ""


def test_max_completion_tokens_wins(service: Service) -> None:
    for post in (post_chat, post_completion):
        body = post(service, max_tokens=8, max_completion_tokens=3, ignore_eos=True).json()
        assert body["usage"]["completion_tokens"] == 3
        assert body["choices"][0]["finish_reason"] == "length"


def test_a_prompt_is_cut_to_its_last_tokens(service: Service) -> None:
    ids = tokens_of(service, PROMPT)
    cut = complete(service, **GREEDY, truncate_prompt_tokens=3, echo=True)
    same = complete(service, **GREEDY, prompt=ids[-3:], echo=True)
    longer = complete(service, **GREEDY, truncate_prompt_tokens=50)

    assert cut["usage"]["prompt_tokens"] == 3
    assert text(cut) == text(same)
    assert longer["usage"]["prompt_tokens"] == len(ids)
    token_prompt = complete(service, **GREEDY, prompt=ids, truncate_prompt_tokens=3)
    assert token_prompt["usage"]["prompt_tokens"] == 3
    assert chat(service, truncate_prompt_tokens=5)["usage"]["prompt_tokens"] == 5


def test_a_prompt_far_beyond_the_context_can_be_cut_to_fit(service: Service) -> None:
    words = "The quick brown fox jumps over the lazy dog, again and again. " * 3000
    cut = complete(service, prompt=words, truncate_prompt_tokens=40, max_tokens=0, echo=True)

    assert cut["usage"]["prompt_tokens"] == 40
    assert words.endswith(text(cut))
    assert post_completion(service, prompt=words).status_code == 400
    ids = complete(service, prompt=[1, 2, 3] * 20_000, truncate_prompt_tokens=8191, max_tokens=1)
    assert ids["usage"]["prompt_tokens"] == 8191


def test_a_chat_without_a_generation_prompt_answers_as_the_last_speaker(service: Service) -> None:
    answer = chat(service, add_generation_prompt=False)

    assert answer["choices"][0]["message"]["role"] == "user"
    events = chat_events(service, add_generation_prompt=False)
    assert events[0]["choices"][0]["delta"]["role"] == "user"
    assert chat(service)["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]


def test_a_final_message_is_continued(service: Service) -> None:
    messages = [
        {"role": "user", "content": "Count to five."},
        {"role": "assistant", "content": "One, two, three,"},
    ]
    answer = chat(
        service, messages=messages, add_generation_prompt=False, continue_final_message=True, **GREEDY
    )

    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert "four" in content(answer).lower()


def test_an_echoed_chat_begins_with_its_last_message(service: Service) -> None:
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    plain = chat(service, messages=messages, **GREEDY, n=2)
    echoed = chat(service, messages=messages, **GREEDY, n=2, echo=True, logprobs=True)

    for index in (0, 1):
        assert content(echoed, index) == "One, two," + content(plain, index)
    assert tokens(echoed["usage"]) == tokens(plain["usage"])
    entries = echoed["choices"][0]["logprobs"]["content"]
    assert len(entries) * 2 == echoed["usage"]["completion_tokens"]
    # A user's message is not the answer's beginning.
    assert content(chat(service, **GREEDY, echo=True)) == content(chat(service, **GREEDY))


def test_an_enforced_answer_is_what_it_was_told_to_be(service: Service) -> None:
    words = "Nobody would say <|im_end|> this: naïve 🌈 zzxqj."
    asked: dict[str, Any] = {
        "enforced_str": words,
        "temperature": 1.3,
        "stop": ["say"],
        "min_tokens": 30,
        "logit_bias": bias(service, " cat", 100),
        "n": 2,
        "max_tokens": None,
    }
    answer = chat(service, **asked, logprobs=True, top_logprobs=2)

    for index in (0, 1):
        assert content(answer, index) == words
        assert answer["choices"][index]["finish_reason"] == "stop"
        assert answer["choices"][index]["stop_reason"] is None
    entries = answer["choices"][0]["logprobs"]["content"]
    assert answer["choices"][1]["logprobs"]["content"] == entries
    assert len(entries) * 2 == answer["usage"]["completion_tokens"]
    spelled = b"".join(bytes(entry["bytes"]) for entry in entries[:-1]).decode()
    assert spelled == words
    assert entries[-1]["token"] == "<|im_end|>"
    assert any(entry["token"] != entry["top_logprobs"][0]["token"] for entry in entries)
    assert joined_chat(chat_events(service, **asked))[1]["content"] == words
    assert text(complete(service, enforced_str=words, max_tokens=None)) == words


def test_an_enforced_answer_can_be_cut_and_must_fit(service: Service) -> None:
    cut = chat(service, enforced_str="One two three four five", max_tokens=2)
    assert content(cut) == "One two"
    assert cut["choices"][0]["finish_reason"] == "length"
    refused = post_chat(service, enforced_str="word " * 8190, max_tokens=None)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_a_replayed_answer_has_the_numbers_of_the_first(service: Service) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 3, "temperature": 0, "max_tokens": 24}
    first = chat(service, **asked)
    again = chat(service, **{**asked, "temperature": 1.3}, enforced_str=content(first))

    assert content(again) == content(first)
    pairs = zip(
        first["choices"][0]["logprobs"]["content"],
        again["choices"][0]["logprobs"]["content"],
        strict=False,
    )
    for one, other in pairs:
        assert one["token"] == other["token"]
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
        assert [each["token"] for each in one["top_logprobs"]] == [e["token"] for e in other["top_logprobs"]]


def test_prompt_and_completion_must_fit_the_context(service: Service) -> None:
    for post, param in ((post_chat, "messages"), (post_completion, "prompt")):
        prompt = post(service).json()["usage"]["prompt_tokens"]
        most = 8192 - prompt
        error = post(service, max_tokens=most + 1).json()["error"]
        assert error["message"] == (
            "This model's maximum context length is 8192 tokens. However, you requested 8193 tokens "
            f"({prompt} in the {param}, {most + 1} in the completion). "
            f"Please reduce the length of the {param} or completion."
        )
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        # The very last token fits too.
        assert post(service, max_tokens=most, stop_token_ids=list(range(10_000))).status_code == 200


def test_messages_that_fill_the_context_leave_no_room(service: Service) -> None:
    response = post_chat(service, messages=[{"role": "user", "content": "a " * 8200}], max_tokens=None)

    assert response.status_code == 400
    error = response.json()["error"]
    assert "maximum context length is 8192 tokens" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_one_fingerprint_for_one_build_pack_and_profile(service: Service) -> None:
    prints = {chat(service)["system_fingerprint"], complete(service)["system_fingerprint"]}
    prints |= {event["system_fingerprint"] for event in chat_events(service)}

    assert len(prints) == 1
    assert prints.pop().startswith("fp_")
