"""Chat templates render as transformers renders them, inside their bounds."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation import chat_template
from appliance.engines.generation.chat_template import ChatTemplate
from appliance.packs.errors import PackError

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe helpful<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str, messages: list[dict[str, Any]] = HELLO, **options: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return template.render(messages, **{"max_characters": 10_000, **options})


def test_chatml() -> None:
    assert render(CHATML) == (
        "<|im_start|>system\nBe helpful<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not render(CHATML, add_generation_prompt=False).endswith("assistant\n")


def test_blocks_are_trimmed_and_lines_stripped() -> None:
    assert render(
        "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\nend"
    ) == ("Hello\nend")


def test_loop_controls_and_the_generation_tag() -> None:
    source = "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(source) == "012"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "Hello!"


def test_tojson_keeps_characters_and_order() -> None:
    tools = [{"type": "function", "function": {"name": "z", "description": "<é> & 'x'"}}]
    assert render("{{ tools | tojson }}", tools=tools) == (
        '[{"type": "function", "function": {"name": "z", "description": "<é> & \'x\'"}}]'
    )
    assert render("{{ {'b': [1], 'a': 2} | tojson(indent=1, sort_keys=true) }}") == (
        '{\n "a": 2,\n "b": [\n  1\n ]\n}'
    )


def test_variables_and_absent_tools() -> None:
    assert (
        render("{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}")
        == "<s></s>TrueTrue"
    )
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert (
        render(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
        )
        == "1"
    )


def test_a_refusal_carries_the_template_s_own_message() -> None:
    with pytest.raises(InputRefusedError, match="Only user and assistant roles") as refused:
        render("{{ raise_exception('Only user and assistant roles') }}")
    assert refused.value.status == 400
    assert refused.value.message == "Only user and assistant roles"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[5].content.x }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 // 0 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for i in range(1000000) %}{% endfor %}",
    ],
)
def test_what_a_template_cannot_do_is_a_refusal(source: str) -> None:
    with pytest.raises(InputRefusedError):
        render(source)


def test_output_is_bounded() -> None:
    with pytest.raises(InputRefusedError) as refused:
        render("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}")
    assert refused.value.code == "context_length_exceeded"


def test_a_runaway_loop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.05)
    silent = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    twice = "{% macro twice(n) %}{% if n %}{{ twice(n-1) }}{{ twice(n-1) }}{% endif %}{% endmacro %}{{ twice(60) }}"
    for source in (silent, twice):
        with pytest.raises(InputRefusedError, match="too long"):
            render(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'open", "{% include 'x' %}{% endif %}", " " * (1 << 19)])
def test_a_broken_template_is_a_pack_error(source: str) -> None:
    with pytest.raises(PackError):
        ChatTemplate(source, {})


def test_a_template_cannot_load_others() -> None:
    with pytest.raises(InputRefusedError):
        render("{% include 'other' %}")
