"""The sandbox that chat templates run in: Jinja's own, with bounds on time and memory.

Every operation that makes a value pays for its bytes out of one budget per rendering, and what can
turn a few bytes into gigabytes at one stroke is measured first, or not there at all.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor
from jinja2.exceptions import SecurityError

# A template makes a few copies of a conversation; this is for those of an empty one.
LEAST_BUDGET_BYTES = 1 << 25
BYTES_PER_CHARACTER = 16
# Values inside one list or dictionary that is written out.
MAX_NODES = 1 << 18
MAX_DIGITS = 15
MAX_INDENT = 16

_NEVER_FILTERS = frozenset(
    {
        "batch",
        "center",
        "filesizeformat",
        "format",
        "indent",
        "pprint",
        "slice",
        "urlize",
        "wordwrap",
        "xmlattr",
    }
)
# Filters that write their input out as text.
# fmt: off
_TEXT_FILTERS = frozenset({
    "capitalize", "e", "escape", "forceescape", "lower", "replace", "string", "striptags", "title",
    "trim", "truncate", "upper", "urlencode", "wordcount",
})
# fmt: on
# fmt: off
_TEXT_METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
    "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace",
    "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper",
})
# fmt: on
_WIDE_FORMAT = re.compile(r"%(\([^)]*\))?[^a-zA-Z%]*([0-9]{3}|\*)")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox with a budget of bytes and seconds; render inside ``bounded``."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self.measured, **options)
        self._bounds = threading.local()
        del self.globals["lipsum"]
        self.filters = {name: self._charging(name, function) for name, function in self.filters.items()}
        self.filters |= {
            "join": self._join,
            "replace": self._replace,
            "tojson": self._to_json,
            "round": self._round,
            "sum": self._sum,
            **{name: functools.partial(_refuse, name) for name in _NEVER_FILTERS},
        }

    @contextlib.contextmanager
    def bounded(self, *, characters: int, seconds: float) -> Iterator[None]:
        """Give this thread's rendering its budget, for a text of at most ``characters``."""
        self._bounds.left = LEAST_BUDGET_BYTES + BYTES_PER_CHARACTER * characters
        self._bounds.end = time.monotonic() + seconds
        try:
            yield
        finally:
            self._bounds.left = 0

    def guard(self, tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
        """Return ``tree`` with the operations that pass by the environment led through it."""
        _Guards().generic_visit(tree)
        return tree

    def spend(self, count: int) -> None:
        """Take ``count`` bytes from the budget. Raises SecurityError when they are not there."""
        self._bounds.left = getattr(self._bounds, "left", 0) - count
        if self._bounds.left < 0:
            raise SecurityError("The chat template takes too much memory for these messages.")

    def tick(self, count: int = 0) -> None:
        """Look at the clock, and spend ``count`` bytes. Raises TemplateError when the time is over."""
        self.spend(count)
        if time.monotonic() > self._bounds.end:
            raise jinja2.TemplateError("The chat template takes too long to render these messages.")

    def charged(self, value: Any) -> Any:
        """Return ``value`` after its bytes are paid, those of strings directly inside it included."""
        self.spend(sys.getsizeof(value))
        if isinstance(value, list | tuple):
            self.spend(sum(sys.getsizeof(each) for each in value if isinstance(each, str)))
        return value

    def measured(self, value: Any) -> Any:
        """Return ``value`` after the text that it is written as is paid for.

        Raises SecurityError when that is too much, or the value is none that has a text.
        """
        pending, nodes = [value], 0
        while pending:
            each = pending.pop()
            nodes += 1
            if isinstance(each, str):
                self.spend(sys.getsizeof(each))
            elif isinstance(each, dict):
                pending += [*each.keys(), *each.values()]
            elif isinstance(each, list | tuple):
                pending += each
            elif each is None or isinstance(each, int | float | jinja2.Undefined):
                self.spend(sys.getsizeof(each) * 3)
            else:
                raise SecurityError(f"a chat template cannot write a {type(each).__name__} as text")
            if nodes + len(pending) > MAX_NODES:
                raise SecurityError("The chat template takes too much memory for these messages.")
        return value

    def concat_texts(self, *values: Any) -> str:
        """Return what ``~`` makes of ``values``."""
        return "".join(str(self.measured(value)) for value in values)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply small numbers only, raise to no power, and pay for the rest first."""
        if operator in ("*", "**"):
            small = all(isinstance(value, int | float) and abs(value) < 1e9 for value in (left, right))
            if operator == "**" or not small:
                raise SecurityError(f"the operator {operator} is not allowed here in a chat template")
        elif operator == "+":
            self.spend(sys.getsizeof(left) + sys.getsizeof(right))
        elif not isinstance(left, int | float):
            if not isinstance(left, str) or _WIDE_FORMAT.search(left):
                raise SecurityError("this use of the operator % is not allowed in a chat template")
            before = self._bounds.left
            self.measured(right)
            self.spend((left.count("%") + 1) * (before - self._bounds.left + 100) + sys.getsizeof(left))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a macro or method; its result is paid for, first where it may be far longer than its parts."""
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return self._replace(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join":
            return self._join(args[0], owner)
        return self.charged(super().call(context, function, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow texts the methods whose results are about as long as themselves, and numbers none."""
        if isinstance(obj, str) and attr not in _TEXT_METHODS:
            return False
        if isinstance(obj, int | float | bytes | bytearray):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Give ``format`` and ``format_map`` no special treatment: texts do not have them here."""

    def _charging(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        place = 1 if hasattr(function, "jinja_pass_arg") else 0  # before it comes a context

        @functools.wraps(function)
        def charging(*args: Any, **kwargs: Any) -> Any:
            if name in _TEXT_FILTERS and len(args) > place:
                self.measured(args[place])
            return self.charged(function(*args, **kwargs))

        return charging

    def _replace(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = (str(self.measured(each)) for each in (value, old, new))
        found = text.count(old)
        if count is not None and count >= 0:
            found = min(found, count)
        self.spend(4 * max(0, len(text) + found * (len(new) - len(old))))
        return text.replace(old, new, -1 if count is None else count)

    def _join(self, values: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        if isinstance(values, jinja2.Undefined):
            return ""
        parts: list[str] = []
        separator = str(self.measured(d))
        for each in values:
            if attribute is not None:
                for name in attribute.split(".") if isinstance(attribute, str) else [attribute]:
                    each = self.getitem(each, name)  # noqa: PLW2901 - the value goes down the path
            self.spend(sys.getsizeof(separator))
            parts.append(str(self.measured(each)))
        return separator.join(parts)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Write JSON without HTML escapes: the reader is a model, not a browser."""
        if indent is not None and not (isinstance(indent, int) and 0 <= indent <= MAX_INDENT):
            raise SecurityError(f"tojson takes an indent of at most {MAX_INDENT}")
        if separators is not None and sum(map(len, separators)) > MAX_INDENT:
            raise SecurityError(f"tojson takes separators of at most {MAX_INDENT} characters")
        self.measured(value)
        written = json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        self.spend(sys.getsizeof(written))
        return written

    def _round(self, value: Any, precision: int = 0, method: str = "common") -> Any:
        if abs(precision) > MAX_DIGITS:
            raise SecurityError(f"round takes a precision of at most {MAX_DIGITS}")
        return jinja2.filters.FILTERS["round"](value, precision, method)

    def _sum(self, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        total = start
        for each in values:
            number = each if attribute is None else self.getitem(each, attribute)
            if not isinstance(number, int | float) or not isinstance(total, int | float):
                raise SecurityError("a chat template may sum numbers only")
            total += number
        return total


class _Guards(jinja2.visitor.NodeTransformer):
    """Leads through the environment: ``~``, slices, constant text and the turns of loops and macros.

    By the environment's attributes and not by names, which a template could set to something else.
    """

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802 - jinja2 names them so
        self.generic_visit(node)
        return _call("concat_texts", list(node.nodes), node.lineno)

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:  # noqa: N802 - jinja2 names them so
        self.generic_visit(node)
        return _call("charged", [node], node.lineno) if isinstance(node.arg, jinja2.nodes.Slice) else node

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802 - jinja2 names them so
        return self._turning(node)

    def visit_Macro(self, node: jinja2.nodes.Macro) -> jinja2.nodes.Node:  # noqa: N802 - jinja2 names them so
        return self._turning(node)

    def visit_CallBlock(self, node: jinja2.nodes.CallBlock) -> jinja2.nodes.Node:  # noqa: N802 - jinja2 names them so
        return self._turning(node)

    def _turning(
        self, node: jinja2.nodes.For | jinja2.nodes.Macro | jinja2.nodes.CallBlock
    ) -> jinja2.nodes.Node:
        # What one turn writes and lists at most, beside what is charged where it is made.
        constants = sum(
            len(text.data) for part in node.body for text in part.find_all(jinja2.nodes.TemplateData)
        ) + sum(len(str(text.value)) for part in node.body for text in part.find_all(jinja2.nodes.Const))
        lists: tuple[type[jinja2.nodes.List | jinja2.nodes.Tuple], ...] = (
            jinja2.nodes.List,
            jinja2.nodes.Tuple,
        )
        items = sum(len(each.items) + 8 for part in node.body for each in part.find_all(lists))
        self.generic_visit(node)
        count = jinja2.nodes.Const(constants + 8 * items)
        tick = jinja2.nodes.ExprStmt(_call("tick", [count], node.lineno))
        node.body.insert(0, tick.set_lineno(node.lineno))
        return node


def _call(attribute: str, args: list[jinja2.nodes.Expr], lineno: int) -> jinja2.nodes.Call:
    function = jinja2.nodes.EnvironmentAttribute(attribute)
    call = jinja2.nodes.Call(function, args, [], None, None)
    call.set_lineno(lineno)
    return call


def _refuse(name: str, *_: Any, **__: Any) -> None:
    raise SecurityError(f"the filter {name} is not allowed in a chat template")
