"""Grammars of requests: read as far as needed to refuse what is no grammar of texts, or has none."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import msgspec

from appliance.engines.errors import InputRefusedError

MAX_CHARACTERS = 1 << 16
# The constraint engine recurses from rule to rule.
MAX_RULES = 1000
MAX_NESTING = 32
# Parts of a terminal, with those of the terminals in it: it becomes one expression.
MAX_WEIGHT = 10_000

# fmt: off
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+|(?://|\#)[^\n]*|\\[ \t]*\n)
    |(?P<newline>\n)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?:\\.|[^/\\\n])+/[imslux]*)
    |(?P<name>[!?]*_?[A-Za-z][A-Za-z0-9_-]*)
    |(?P<keyword>%[a-z]+)
    |(?P<special><[^<>\s]+>|@[A-Za-z0-9_-]+)
    |(?P<number>[+-]?[0-9]+)
    |(?P<sign>->|::|\.\.|[:,.(){}\[\]~|&=+*?_])""",
    re.VERBOSE,
)
# fmt: on
_STATEMENTS = ("%import", "%ignore")


class Token(msgspec.Struct, frozen=True):
    """A token of a grammar's text."""

    kind: str
    text: str
    at: int


class _Item(msgspec.Struct, frozen=True):
    """A part of a rule: another rule's name, or options in brackets, or a text (None)."""

    of: str | list[list[_Item]] | None
    optional: bool = False


def check_grammar(text: str) -> None:
    """Check a grammar in Lark's notation from a request.

    Raises InputRefusedError when it is too large, uses what is not Lark's, or its rule ``start``
    stands for no finite text.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputRefusedError(f"A grammar may have at most {MAX_CHARACTERS} characters.")
    tokens = list(_tokens(text))
    for token in tokens:
        if token.kind == "special" or token.text == "::":
            raise InputRefusedError(f"The grammar cannot be used: {token.text[:50]} is not Lark's.")
        if token.kind == "keyword" and token.text not in _STATEMENTS:
            raise InputRefusedError(f"The grammar cannot be used: {token.text} is not supported.")
    rules = _Reader(tokens).rules()
    if "start" not in rules:
        raise InputRefusedError("The grammar has no rule `start`.")
    if "start" not in _productive(rules):
        raise InputRefusedError(
            "The grammar cannot be satisfied: its rule `start` stands for no finite text."
        )
    _check_terminals({name: options for name, options in rules.items() if name.lstrip("_").isupper()})


def with_schemas(text: str, rewrite: Callable[[Any], Any]) -> str:
    """Return a grammar in which each schema after ``%json`` is replaced by what ``rewrite`` makes of it.

    Raises InputRefusedError when the grammar cannot be read, and what ``rewrite`` raises.
    """
    parts: list[str] = []
    done = 0
    while True:
        token = next((token for token in _tokens(text, done) if token.text == "%json"), None)
        if token is None:
            return "".join([*parts, text[done:]])
        at = token.at + len(token.text)
        while text[at : at + 1].isspace():
            at += 1
        schema, end = _schema_at(text, at)
        parts += [text[done:at], json.dumps(rewrite(schema))]
        done = end


def _schema_at(text: str, at: int) -> tuple[Any, int]:
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        raise InputRefusedError("The grammar cannot be used: after %json comes no JSON.") from None


def _tokens(text: str, at: int = 0) -> Iterator[Token]:
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            line = text.count("\n", 0, at) + 1
            raise InputRefusedError(f"The grammar cannot be read in line {line}, at {text[at : at + 20]!r}.")
        kind = str(match.lastgroup)
        if kind != "space":
            yield Token(kind, match.group(), at)
        at = match.end()


class _Reader:
    """Reads the rules of a grammar."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = [*tokens, Token("newline", "", 0), Token("end", "", 0)]
        self._at = 0
        self._depth = 0

    def rules(self) -> dict[str, list[list[_Item]]]:
        """Return the options of each rule and terminal by its name. Raises InputRefusedError."""
        rules: dict[str, list[list[_Item]]] = {}
        while self._peek().kind != "end":
            token = self._next()
            if token.kind == "newline":
                continue
            if token.kind == "keyword":
                while self._peek().kind not in ("newline", "end"):
                    self._next()
                continue
            if token.kind != "name":
                self._fail(token)
            if self._take("."):
                self._next()
            if not self._take(":"):
                self._fail(self._peek())
            if len(rules) == MAX_RULES:
                raise InputRefusedError(f"A grammar may have at most {MAX_RULES} rules.")
            rules[token.text.lstrip("!?")] = self._options()
        return rules

    def _options(self) -> list[list[_Item]]:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise InputRefusedError(f"The brackets of a grammar may be nested at most {MAX_NESTING} deep.")
        options = [self._series()]
        while self._more():
            options.append(self._series())
        self._depth -= 1
        return options

    def _more(self) -> bool:
        """Go on to the next option, which may stand in a line of its own."""
        at = self._at
        while self._peek().kind == "newline":
            self._next()
        if self._take("|"):
            return True
        if self._depth == 1:
            self._at = at
        return False

    def _series(self) -> list[_Item]:
        items: list[_Item] = []
        while True:
            token = self._peek()
            if token.kind == "newline" and self._depth > 1:
                self._next()
            elif token.text in ("|", ")", "]") or token.kind in ("newline", "end"):
                return items
            elif self._take("->"):
                self._next()
            elif not self._take("&"):
                items.append(self._repeated(self._item()))

    def _item(self) -> _Item:
        token = self._next()
        if token.text == "~":
            self._item()
            return _Item(None)
        if token.text in ("(", "["):
            options = self._options()
            if not self._take(")" if token.text == "(" else "]"):
                self._fail(self._peek())
            return _Item(options, optional=token.text == "[")
        if token.kind == "text" and self._take(".."):
            self._next()
        if token.kind not in ("name", "text", "regex"):
            self._fail(token)
        return _Item(token.text.lstrip("!?") if token.kind == "name" else None)

    def _repeated(self, item: _Item) -> _Item:
        optional = item.optional
        while self._peek().text in ("*", "?", "+", "~", "{"):
            sign = self._next().text
            if sign in ("*", "?"):
                optional = True
            elif sign == "~":
                optional = optional or int(self._number()) == 0
                if self._take(".."):
                    self._number()
            elif sign == "{":
                least = "0" if self._peek().text == "," else self._number()
                optional = optional or int(least) == 0
                while self._next().text != "}":
                    if self._peek().kind == "end":
                        self._fail(self._peek())
        return _Item(item.of, optional)

    def _number(self) -> str:
        token = self._next()
        if token.kind != "number" or len(token.text) > 9:
            self._fail(token)
        return token.text

    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _take(self, text: str) -> bool:
        if self._tokens[self._at].text != text:
            return False
        self._at += 1
        return True

    def _fail(self, token: Token) -> NoReturn:
        found = f"{token.text[:30]!r}" if token.text.strip() else "the end of a line"
        raise InputRefusedError(f"The grammar cannot be read: {found} does not belong where it stands.")


def _productive(rules: dict[str, list[list[_Item]]]) -> set[str]:
    """Return the names of the rules that stand for some finite text."""
    known: set[str] = set()
    grown = True
    while grown:
        grown = False
        # Rules are mostly written before those that they refer to.
        for name in reversed(rules):
            if name not in known and _ends(rules[name], known, rules):
                known.add(name)
                grown = True
    return known


def _ends(options: list[list[_Item]], known: set[str], rules: dict[str, list[list[_Item]]]) -> bool:
    return any(all(item.optional or _item_ends(item, known, rules) for item in series) for series in options)


def _item_ends(item: _Item, known: set[str], rules: dict[str, list[list[_Item]]]) -> bool:
    if isinstance(item.of, str):
        # What is not defined here is imported, or refused by the constraint engine.
        return item.of in known or item.of not in rules
    return item.of is None or _ends(item.of, known, rules)


def _check_terminals(terminals: dict[str, list[list[_Item]]]) -> None:
    weights: dict[str, int] = {}
    grown = True
    while grown:
        grown = False
        for name in reversed(terminals):
            if name not in weights:
                weight = _weight(terminals[name], weights, terminals)
                if weight is not None:
                    weights[name] = weight
                    grown = True
    if len(weights) < len(terminals):
        raise InputRefusedError("The grammar cannot be used: a terminal refers to itself.")
    if max(weights.values(), default=0) > MAX_WEIGHT:
        raise InputRefusedError("The grammar is too complex: a terminal becomes too large an expression.")


def _weight(options: list[list[_Item]], weights: dict[str, int], terminals: dict[str, Any]) -> int | None:
    """Return how many parts an expression has; None while a terminal in it is not weighed yet."""
    total = 0
    for item in itertools.chain.from_iterable(options):
        weight: int | None = 1
        if isinstance(item.of, str) and item.of in terminals:
            weight = weights.get(item.of)
        elif isinstance(item.of, list):
            weight = _weight(item.of, weights, terminals)
        if weight is None:
            return None
        total += weight
    return total
