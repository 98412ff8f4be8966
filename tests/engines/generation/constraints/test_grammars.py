"""Grammars: ours and llama.cpp's, and what is none."""

from __future__ import annotations

import json
import re

import pytest

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.compiler import ConstraintCompiler, Grammar, LarkGrammar
from tests.engines.generation.constraints.samples import Walker, accepts

SUM = """
// sums of numbers
start: sum
sum: product | sum "+" product   # left recursive
?product: NUMBER -> number
    | product "*" NUMBER
    | "(" sum ")"
NUMBER: /[1-9][0-9]{0,2}/
%ignore " "
"""
GBNF = r"""
# a list of words or paths
root  ::= item ("," item)* [/]?
item  ::= word | path
word  ::= [a-z]{2,4} | "\u00e9"
path  ::= "/" ([^/\u0041-\U0010FFFF] [b-f])+
"""


def test_texts_of_a_grammar_are_read_by_it(compiler: ConstraintCompiler, walker: Walker) -> None:
    sums = compiler.compile(Grammar(SUM))
    for seed in range(20):
        text = walker.text(sums, seed, free_steps=10)
        assert text is None or eval(text, {"__builtins__": {}}) > 0  # noqa: S307 - digits, + * ( ) and spaces
    assert accepts(sums, walker, "12 * 3 + (4+5)")
    assert not accepts(sums, walker, "12 + ")


def test_a_gbnf_grammar_is_taken_too(compiler: ConstraintCompiler, walker: Walker) -> None:
    constraint = compiler.compile(Grammar(GBNF))
    for text in ("ab", "abcd,é", "é/", "/-b"):
        assert accepts(constraint, walker, text), text
    for text in ("a", "ab,", "/Ab", "é//"):
        assert not accepts(constraint, walker, text), text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rule `start`"),
        ('begin: "a"', "no rule `start`"),
        ("start: other", "other"),
        ('start: "a', "line 1"),
        ('start: %json {"type": "object"}', "%json is not supported"),
        ('%llguidance {"no_forcing": true}\nstart: "a"', "%llguidance is not supported"),
        ("start: <|im_start|>", "not Lark's"),
        ("start: <[1-100]>", "not Lark's"),
        ("start: @other", "not Lark's"),
        ('start[max_tokens=1]: "a"', "does not belong"),
        ("start: /(?=a)/", "look-around"),
        ('root ::= "a', "GBNF"),
        ('other ::= "a"', "root"),
    ],
)
def test_what_is_no_grammar_is_refused(compiler: ConstraintCompiler, text: str, words: str) -> None:
    with pytest.raises(InputRefusedError, match=re.escape(words)):
        compiler.compile(Grammar(text))


def test_a_grammar_of_our_own_holds_control_tokens_and_schemas(
    compiler: ConstraintCompiler, walker: Walker
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number", "exclusiveMaximum": 1, "minimum": 0}}}
    layout = {"x-guidance": {"whitespace_pattern": " "}}
    text = f'start: "x%json" call\ncall: <[1]> body\nbody: %json {json.dumps(schema | layout)}\n'
    constraint = compiler.compile(LarkGrammar(text))
    state = constraint.start()
    for part in [*walker.tokenizer.encode("x%json", add_special_tokens=False).ids, 1]:
        state.accept(part)
    for token_id in walker.tokenizer.encode('{"a": 0.99999', add_special_tokens=False).ids:
        state.accept(token_id)
    unfinished = state.copy()
    state.accept(walker.tokenizer.encode("}").ids[0])
    assert (unfinished.finished, state.finished) == (False, True)

    with pytest.raises(InputRefusedError, match="`not` is not supported"):
        compiler.compile(LarkGrammar('start: %json {"not": {}}'))
    with pytest.raises(InputRefusedError, match="no JSON"):
        compiler.compile(LarkGrammar("start: %json oops"))
