"""The syntax of regular expressions, as Python's and ECMAScript's engines share it.

The three engines that matter read some of it differently (``\\d`` in Unicode, ``.`` and line ends,
``[a&&b]``): what is read here is written for the constraint engine (Rust's dialect) such that what it
then matches is a match under each of them. What has no equal (look-around, back references) is refused.
"""

from __future__ import annotations

import re
import string
from typing import NoReturn

import msgspec

from appliance.engines.errors import InputRefusedError

MAX_CHARACTERS = 8192
# Deeper groups than this are refused by the constraint engine too.
MAX_NESTING = 40
MAX_REPEATS = 65535

JSON_SPACES = frozenset(" \t\n\r")

_DOT = "[^\\n\\r\\x{2028}\\x{2029}]"
_WORDS = "\\p{Alphabetic}\\p{M}\\p{N}\\p{Pc}\\p{Join_Control}"
_SPACES = "\\s\\x{1C}-\\x{1F}\\x{85}\\x{FEFF}"
# What stands for a class: characters that every engine has in it, and those that any engine has in it.
# The second are for what is excluded.
_CERTAIN = {
    "d": "0-9",
    "D": "\\P{Nd}",
    "w": "0-9A-Za-z_",
    "W": f"[^{_WORDS}]",
    "s": "\\t\\n\\x0B\\x0C\\r\\x20",
    "S": f"[^{_SPACES}]",
}
_POSSIBLE = {
    "d": "\\p{Nd}",
    "D": "[^0-9]",
    "w": _WORDS,
    "W": "[^0-9A-Za-z_]",
    "s": _SPACES,
    "S": "[^\\t\\n\\x0B\\x0C\\r\\x20]",
}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_GROUP = re.compile(r"\?(?:P?<(?P<name>[A-Za-z_]\w*)>|(?P<on>[aisu]*)(?:-(?P<off>[is]+))?:)")
_FLAGS = re.compile(r"\(\?(?P<on>[aisu]+)\)")
_BOUNDS = re.compile(r"\{(?:(\d+)(,)?(\d*)|,(\d+))\}", re.ASCII)
_PROPERTY = re.compile(r"\{(\^?[A-Za-z_]+(?:=[A-Za-z_]+)?)\}|([A-Z])", re.ASCII)


class Characters(msgspec.Struct, frozen=True):
    """One character out of a set. ``members`` is the set, where it is small and known."""

    written: str
    members: frozenset[str] | None = None


class Start(msgspec.Struct, frozen=True):
    """The start of the text."""


class End(msgspec.Struct, frozen=True):
    """The end of the text."""


class Series(msgspec.Struct, frozen=True):
    """One part after the other."""

    parts: tuple[Node, ...]


class Either(msgspec.Struct, frozen=True):
    """One of the options."""

    options: tuple[Node, ...]


class Repeat(msgspec.Struct, frozen=True):
    """``part`` several times; ``most`` None is without limit."""

    part: Node
    least: int
    most: int | None


Node = Characters | Start | End | Series | Either | Repeat


def parse(pattern: str, *, json_spaces: bool = False) -> Node:
    """Return what ``pattern`` is made of; ``json_spaces`` takes ``\\s`` for the four spaces of JSON.

    Raises InputRefusedError for what is no regular expression, not supported, or too large.
    """
    if len(pattern) > MAX_CHARACTERS:
        raise InputRefusedError(f"A regular expression may have at most {MAX_CHARACTERS} characters.")
    return _Parser(pattern, json_spaces).parse()


def letter(character: str) -> str:
    """Return the expression of one character."""
    if character.isascii() and character.isalnum():
        return character
    return f"\\x{{{ord(character):X}}}"


class _Parser:
    """Reads one pattern."""

    def __init__(self, pattern: str, json_spaces: bool) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._flags: frozenset[str] = frozenset()
        self._certain = {**_CERTAIN, "s": "\\t\\n\\r\\x20"} if json_spaces else _CERTAIN
        self._spaces = JSON_SPACES if json_spaces else None

    def parse(self) -> Node:
        flags = _FLAGS.match(self._text)
        if flags:
            self._flags = frozenset(flags["on"])
            self._at = flags.end()
        parsed = self._either()
        if self._at < len(self._text):
            self._fail("unbalanced )")
        return parsed

    def _either(self) -> Node:
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"its groups are nested more than {MAX_NESTING} deep")
        options = [self._series()]
        while self._take("|"):
            options.append(self._series())
        self._depth -= 1
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _series(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            part = self._part()
            if part is not None:
                parts.append(self._repeated(part))
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def _part(self) -> Node | None:
        character = self._next()
        if character == "(":
            return self._group()
        if character == "[":
            return self._set()
        if character == "\\":
            return self._escape()
        if character == ".":
            return Characters("(?s:.)" if "s" in self._flags else _DOT)
        if character == "^":
            return Start()
        if character == "$":
            return End()
        if character in "*+?" or (character == "{" and _BOUNDS.match(self._text, self._at - 1)):
            self._fail("nothing to repeat")
        return self._one(character)

    def _repeated(self, part: Node) -> Node:
        bounds = _BOUNDS.match(self._text, self._at)
        if bounds:
            self._at = bounds.end()
            least, most = int(bounds[1] or 0), self._most(bounds)
        elif self._text[self._at : self._at + 1] in ("*", "+", "?"):
            sign = self._next()
            least, most = int(sign == "+"), 1 if sign == "?" else None
        else:
            return part
        if max(least, most or 0) > MAX_REPEATS:
            self._fail(f"it repeats something more than {MAX_REPEATS} times")
        if most is not None and most < least:
            self._fail("a repetition has a minimum above its maximum")
        # Of what is matched as a whole, a lazy repetition matches the same; a possessive one does not.
        self._take("?")
        if self._text[self._at : self._at + 1] in ("*", "+", "?") or _BOUNDS.match(self._text, self._at):
            self._fail("possessive and repeated quantifiers are not supported")
        if isinstance(part, Start | End):
            self._fail("nothing to repeat")
        return Repeat(part, least, most)

    def _most(self, bounds: re.Match[str]) -> int | None:
        if bounds[4] is not None:
            return int(bounds[4])
        if bounds[2] is None:
            if bounds[3]:
                self._fail("a repetition is not understood")
            return int(bounds[1])
        return int(bounds[3]) if bounds[3] else None

    def _group(self) -> Node | None:
        if self._text.startswith("?#", self._at):
            end = self._text.find(")", self._at)
            if end < 0:
                self._fail("a group is not closed")
            self._at = end + 1
            return None
        outside = self._flags
        if self._text.startswith("?", self._at):
            match = _GROUP.match(self._text, self._at)
            if match is None:
                self._fail("look-around, conditions and other extensions of groups are not supported")
            self._flags = (outside | frozenset(match["on"] or "")) - frozenset(match["off"] or "")
            self._at = match.end()
        inside = self._either()
        if not self._take(")"):
            self._fail("a group is not closed")
        self._flags = outside
        # A series is kept apart, so that what repeats it repeats all of it.
        return inside

    def _escape(self) -> Node:
        letter = self._next("it ends with \\")
        if letter in _CERTAIN:
            written = self._certain[letter]
            return self._chosen(f"[{written}]", self._spaces if letter == "s" else None)
        if letter in "pP":
            return self._chosen(self._property(letter), None)
        if letter in "AZz":
            return Start() if letter == "A" else End()
        if letter in "bB":
            self._fail("word boundaries are not supported")
        return self._one(self._escaped(letter))

    def _escaped(self, letter: str) -> str:
        """Return the character that an escape is; ``letter`` is what follows the backslash."""
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter in _HEX_DIGITS:
            return self._hexadecimal(letter)
        if letter == "0" and not self._text[self._at : self._at + 1].isdigit():
            return "\0"
        if letter == "c" and self._text[self._at : self._at + 1] in set(string.ascii_letters):
            return chr(ord(self._next()) & 31)
        if letter.isdigit():
            self._fail("back references are not supported")
        if letter.isascii() and letter.isalpha():
            self._fail(f"the escape \\{letter} is not known")
        return letter

    def _hexadecimal(self, letter: str) -> str:
        code = self._code(letter)
        if 0xD800 <= code < 0xDC00 and self._take("\\u"):
            low = self._code("u")
            if 0xDC00 <= low < 0xE000:
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            self._fail("an escape is no character")
        return chr(code)

    def _code(self, letter: str) -> int:
        if letter == "u" and self._take("{"):
            end = self._text.find("}", self._at)
            digits = self._text[self._at : end] if 0 <= end <= self._at + 6 else ""
            self._at = end + 1
        else:
            digits = self._text[self._at : self._at + _HEX_DIGITS[letter]]
            self._at += _HEX_DIGITS[letter]
            if len(digits) < _HEX_DIGITS[letter]:
                digits = ""
        if not digits or not set(digits) <= set(string.hexdigits):
            self._fail(f"the escape \\{letter} is not complete")
        return int(digits, 16)

    def _property(self, letter: str) -> str:
        match = _PROPERTY.match(self._text, self._at)
        if match is None:
            self._fail(f"the escape \\{letter} needs the name of a property in braces")
        self._at = match.end()
        return f"\\{letter}{{{match[1] or match[2]}}}"

    def _set(self) -> Node:
        excluded = self._take("^")
        named = _POSSIBLE if excluded else self._certain
        written: list[str] = []
        members: set[str] | None = set()
        first = True
        while first or not self._take("]"):
            first = False
            if self._text.startswith("[:", self._at):
                self._fail("POSIX classes are not supported")
            low = self._member(named)
            if len(low) > 1:
                written.append(low[1:])
                spaces = self._spaces if low[1:] == self._certain["s"] else None
                members = None if members is None or spaces is None else members | spaces
                continue
            high = low
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._member(named)
                if len(high) > 1 or high < low:
                    self._fail("a range in a set is not understood")
            written.append(letter(low) if low == high else f"{letter(low)}-{letter(high)}")
            if members is not None:
                small = ord(high) - ord(low) < 256
                members = members | set(map(chr, range(ord(low), ord(high) + 1))) if small else None
        known = None if excluded or members is None else frozenset(members)
        return self._chosen(f"[{'^' if excluded else ''}{''.join(written)}]", known)

    def _member(self, named: dict[str, str]) -> str:
        """Return one character of a set, or ":" and the expression of several."""
        character = self._next("a set is not closed")
        if character != "\\":
            return character
        letter = self._next("a set is not closed")
        if letter in named:
            return ":" + named[letter]
        if letter in "pP":
            return ":" + self._property(letter)
        return "\b" if letter == "b" else self._escaped(letter)

    def _one(self, character: str) -> Characters:
        if 0xD800 <= ord(character) < 0xE000:
            self._fail("it holds half a surrogate pair")
        return self._chosen(letter(character), frozenset(character))

    def _chosen(self, written: str, members: frozenset[str] | None) -> Characters:
        if "i" in self._flags:
            return Characters(f"(?i:{written})", None)
        return Characters(written, members)

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _next(self, missing: str = "it ends too early") -> str:
        if self._at >= len(self._text):
            self._fail(missing)
        self._at += 1
        return self._text[self._at - 1]

    def _fail(self, reason: str) -> NoReturn:
        raise InputRefusedError(f"The regular expression is not supported at character {self._at}: {reason}.")
