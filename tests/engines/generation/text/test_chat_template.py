"""Chat templates render as transformers renders them, inside their bounds."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.text import chat_template
from appliance.engines.generation.text.chat_template import ChatTemplate
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


def growing(start: str, step: str, end: str = "") -> str:
    """A template that replaces ``ns.t`` by ``step`` sixty times."""
    step = step if step.startswith("{%") else "{% set ns.t = " + step + " %}"
    return "{% set ns = namespace(t=" + start + ") %}{% for i in range(60) %}" + step + "{% endfor %}" + end


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
        "{{ 'a'.ljust(400000000) }}",
        "{{ messages[0].content.rjust(400000000)|length }}",
        "{{ '{:>400000000}'.format('a')|length }}",
        "{{ '{a:>400000000}'.format_map({'a': 'a'})|length }}",
        "{{ ('a'|attr('center'))(400000000)|length }}",
        "{{ (1).to_bytes(400000000, 'big')|length }}",
        "{{ messages[0].content.encode()|length }}",
        growing("'a'", "ns.t + ns.t", "{{ ns.t|length }}"),
        growing("'a'", "ns.t ~ ns.t", "{{ ns.t|length }}"),
        growing("[1]", "ns.t + ns.t", "{{ ns.t|length }}"),
        growing("[1]", "[ns.t, ns.t]", "{{ ns.t }}"),
        growing("[1]", "[ns.t, ns.t]", "{{ ns.t|tojson|length }}{{ ns.t|string|length }}"),
        growing("'aa'", "ns.t|replace('a', ns.t)", ""),
        growing("'aa'", "ns.t.replace('a', ns.t)", ""),
        growing("'aa'", "ns.t.join([ns.t]*1)", ""),
        growing("'aa'", "[ns.t, ns.t, ns.t]|join", ""),
        growing("'aa'", "ns.t.join([ns.t, ns.t])", ""),
        growing("'aa'", "{% set ns.t %}{{ ns.t }}{{ ns.t }}{% endset %}", ""),
        "{% macro m() %}{% for i in range(99999) %}"
        + "constant " * 100
        + "{% endfor %}{% endmacro %}{{ m()|length }}",
        "{{ (range(90000)|map('center', 5000)|join)|length }}",
        "{{ ('%400000000s' % 'a')|length }}",
        "{{ ('%*s' % (400000000, 'a'))|length }}",
        "{{ ('%.400000000f' % 1.5)|length }}",
        "{{ 'a'|center(400000000)|length }}",
        "{{ 'a\nb'|indent(400000000)|length }}",
        "{{ [1]|batch(400000000, 'x')|list|length }}",
        "{{ [1]|slice(400000000)|list|length }}",
        "{{ [1]|tojson(indent=400000000)|length }}",
        "{{ 1.5|round(400000000, 'floor') }}",
        "{{ lipsum(n=10000)|length }}",
    ],
)
def test_what_a_template_cannot_do_is_a_refusal(source: str) -> None:
    with pytest.raises(InputRefusedError):
        render(source)


def test_what_templates_use_is_there() -> None:
    """Methods, filters and operators as the templates of known models have them."""
    content = "<think>why</think>\n\nBecause, 1 + 1 "
    messages = [{"role": "user", "content": content, "parts": [{"text": "a"}, {"text": "b"}]}]
    for source, expected in {
        "{{ messages[0].content.split('</think>')[-1].lstrip('\n') }}": "Because, 1 + 1 ",
        "{{ messages[0]['content'].strip().startswith('<think>') }}": "True",
        "{{ messages[0].content.replace('why', 'who') | trim }}": content.replace("why", "who").strip(),
        "{{ messages[0].parts | map(attribute='text') | join(', ') }}": "a, b",
        "{{ messages[0].parts | join('', attribute='text') }}": "ab",
        "{{ ', '.join(['x', 'y']) }}{{ 'a-b' | replace('-', '+') | upper }}": "x, yA+B",
        "{{ 'a' ~ 1 ~ none }}{{ messages[1:] | length }}{{ messages[::-1][0].role }}": "a1None0user",
        "{{ (loop_index or 5) % 2 == 1 }}{{ '%s: %02d' % ('n', 7) }}": "Truen: 07",
        "{{ {'b': 1, 'a': [true, 1.5]} }}{{ [1, 2] | sum }}{{ 2.345 | round(1) }}": "{'b': 1, 'a': [True, 1.5]}32.3",
        "{% for k, v in messages[0].items() %}{{ k }} {% endfor %}": "role content parts ",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}": "1",
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('y') }}{{ [m(1), undefined_name] | join }}": "<y><1>",
        "{% set text %}a{{ 1 }}{% endset %}{{ text + 'b' }}": "a1b",
    }.items():
        assert render(source, messages) == expected


def test_output_is_bounded() -> None:
    with pytest.raises(InputRefusedError) as refused:
        render("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}")
    assert refused.value.code == "context_length_exceeded"


def test_a_runaway_loop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.05)
    silent = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    twice = "{% macro twice(n) %}{% if n %}{{ twice(n-1) }}{{ twice(n-1) }}{% endif %}{% endmacro %}{{ twice(60) }}"
    renamed = "{% set appliance_tick = namespace %}{% set tick = namespace %}" + silent
    for source in (silent, twice, renamed):
        with pytest.raises(InputRefusedError, match="too long"):
            render(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'open", "{% include 'x' %}{% endif %}", " " * (1 << 19)])
def test_a_broken_template_is_a_pack_error(source: str) -> None:
    with pytest.raises(PackError):
        ChatTemplate(source, {})


def test_a_template_cannot_load_others() -> None:
    with pytest.raises(InputRefusedError):
        render("{% include 'other' %}")
