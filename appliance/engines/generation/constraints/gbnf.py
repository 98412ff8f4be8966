"""Grammars in GBNF, llama.cpp's notation (``root ::= …``), as Lark's."""

from __future__ import annotations

import re

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.constraints.lark import MAX_CHARACTERS

# The converter goes over all rules as often as they depend on each other.
MAX_RULES = 300

_RULE = re.compile(r"^[ \t]*[A-Za-z][A-Za-z0-9_-]*[ \t]*::=", re.MULTILINE)
_LARK_START = re.compile(r"^[ \t]*[?!]?start[ \t]*(?:\.\d+)?[ \t]*:(?!:)", re.MULTILINE)
_PART = re.compile(r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|#[^\n]*')
_UNICODE = re.compile(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})")


def is_gbnf(text: str) -> bool:
    """Return whether a grammar is written in GBNF rather than Lark's notation."""
    return _LARK_START.search(text) is None and _RULE.search(text) is not None


def lark_of(text: str) -> str:
    """Return the Lark grammar of a GBNF one. Raises InputRefusedError when it is none, or too large."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if len(text) > MAX_CHARACTERS:
        raise InputRefusedError(f"A grammar may have at most {MAX_CHARACTERS} characters.")
    if len(_RULE.findall(text)) > MAX_RULES:
        raise InputRefusedError(f"A GBNF grammar may have at most {MAX_RULES} rules.")
    try:
        converted = gbnf_to_lark(_PART.sub(_plain, text))
    except RecursionError:
        raise InputRefusedError("The GBNF grammar is nested too deeply.") from None
    except Exception as error:  # noqa: BLE001 - the converter raises bare exceptions for faults in the grammar
        raise InputRefusedError(f"The GBNF grammar cannot be read: {error}") from None
    return str(converted).removeprefix("%llguidance {}")


def _plain(part: re.Match[str]) -> str:
    """Return a literal or set in a spelling that the converter carries over rightly."""
    found = part.group()
    if found.startswith("#"):
        return found
    found = _UNICODE.sub(_character, found)
    return found.replace("/", "\\x2F") if found.startswith("[") else found


def _character(escape: re.Match[str]) -> str:
    code = int(escape[1] or escape[2], 16)
    if code < 0x80:
        return f"\\x{code:02X}"
    if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        raise InputRefusedError("The GBNF grammar cannot be read: an escape is no character.")
    return chr(code)
