"""Regular expressions are written anew so that every engine agrees with the result."""

from __future__ import annotations

import pytest

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.regex import json_whitespace, literal, whole, within_json


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        ("", ""),
        ("a|b", "(?:a|b)"),
        ("^(?:a|b)+?$", "(?:(?:a|b)){1,}"),
        ("(?P<one>a)(?<two>b)(?#three)", "ab"),
        ("a{2}b{2,}c{,3}d{1,2}e?", "a{2,2}b{2,}c{0,3}d{1,2}e{0,1}"),
        ("x{y}", r"x\x{7B}y\x{7D}"),
        (r"\d\w", "[0-9][0-9A-Za-z_]"),
        (r"[^\d]", r"[^\p{Nd}]"),
        (r"\p{Lu}\PL", r"\p{Lu}\P{L}"),
        ("[]a-c]", r"[\x{5D}a-c]"),
        ("[a&&b]", r"[a\x{26}\x{26}b]"),
        (r"\x41é\/", r"A\x{E9}\x{2F}"),
        (r"\uD83D\uDE00\u{1F600}", r"\x{1F600}\x{1F600}"),
        ("(?i)a(?-i:b)", "(?i:a)b"),
        ("(?s).", "(?s:.)"),
    ],
)
def test_an_expression_of_the_whole_text(pattern: str, written: str) -> None:
    assert whole(pattern) == written


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        ("a", "(?s:.*)a(?s:.*)"),
        ("^a", "a(?s:.*)"),
        ("a$", "(?s:.*)a"),
        ("^a$|b", "(?:a|(?s:.*)b(?s:.*))"),
        ("(^|,)a($|;)", r"(?:|(?s:.*)\x{2C})a(?:|\x{3B}(?s:.*))"),
        ("^$", ""),
        ("^", "(?s:.*)"),
    ],
)
def test_an_expression_found_somewhere(pattern: str, written: str) -> None:
    assert within_json(pattern) == written


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "(",
            ")",
            "a)",
            "[a",
            "[]",
            "\\",
            "*a",
            "a**",
            "a{2}{3}",
            "a++",
            "a{3,2}",
            "(?:",
            "(?<=a)b",
            "(?!a)",
        ),
        *("(?>a)", "(?P=n)", "(?(1)a)", r"\1", r"\b", r"\B", r"\q", r"\x4", r"\u12", r"\ud800", r"\p", "a^b"),
        *("(a$)*", "^*", "[b-a]", "[[:alpha:]]", "a{70000}", "(" * 50 + ")" * 50, "a" * 9000),
        *("(?m)a", "(?x)a"),
    ],
)
def test_what_has_no_equal_is_refused(pattern: str) -> None:
    with pytest.raises(InputRefusedError) as caught:
        whole(pattern)
    assert caught.value.status == 400


@pytest.mark.parametrize("pattern", ["\x00", r"[\x01-\x05]", r"a\x7f"])
def test_json_holds_no_control_characters(pattern: str) -> None:
    with pytest.raises(InputRefusedError, match="control characters"):
        within_json(pattern)


def test_literals_and_whitespace() -> None:
    assert literal("a.b\n") == r"a\x{2E}b\x{A}"
    assert json_whitespace(r"[ \n]?|\s{2}") == r"(?:[\x{20}\x{A}]{0,1}|[\t\n\r\x20]{2,2})"
    with pytest.raises(InputRefusedError):
        json_whitespace("-")
