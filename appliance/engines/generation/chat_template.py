"""The pack's chat template: Jinja, in a sandbox, set up as Hugging Face's transformers renders it."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from jinja2.exceptions import SecurityError

from appliance.engines.errors import InputRefusedError
from appliance.packs.errors import PackError

MAX_TEMPLATE_CHARACTERS = 1 << 18
# A template renders a conversation of the whole context in milliseconds; more is a runaway loop.
MAX_SECONDS = 5.0
TICK = "appliance_tick"

# What a template raises over messages that it was not written for, such as a content that is no string.
_RENDER_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ChatTemplate:
    """A compiled chat template. ``variables`` are further names it may use, such as ``bos_token``."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        """Compile ``source``. Raises PackError when it is too long or not a Jinja template."""
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise PackError(f"The chat template is longer than {MAX_TEMPLATE_CHARACTERS} characters.")
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            tree = environment.parse(source)
            _count_turns(tree)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise PackError(f"The chat template is not valid: {error}") from error
        self._variables = variables

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        max_characters: int,
    ) -> str:
        """Return the prompt text of a conversation.

        Raises InputRefusedError with the template's own message when the template refuses the
        messages, and when the text grows past ``max_characters`` or takes more than MAX_SECONDS.
        """
        pieces: list[str] = []
        room = max_characters
        context = {
            **self._variables,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            TICK: _deadline(MAX_SECONDS),
        }
        try:
            for piece in self._template.generate(context):
                room -= len(piece)
                if room < 0:
                    raise InputRefusedError(
                        f"The messages make a prompt of more than {max_characters} characters,"
                        " which cannot fit the model's context. Please reduce the length of the messages.",
                        code="context_length_exceeded",
                        param="messages",
                    )
                pieces.append(piece)
        except jinja2.TemplateError as error:
            raise InputRefusedError(
                error.message or "The chat template refused it.", param="messages"
            ) from error
        except _RENDER_FAULTS as error:
            raise InputRefusedError(
                f"The model's chat template cannot render these messages: {error}", param="messages"
            ) from error
        return "".join(pieces)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox, without the operators that turn a few bytes into gigabytes."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply small numbers only, and raise to no power: templates need no more."""
        small = all(isinstance(value, int | float) and abs(value) < 1e9 for value in (left, right))
        if operator == "**" or not small:
            raise SecurityError(f"the operator {operator} is not allowed here in a chat template")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _count_turns(tree: jinja2.nodes.Template) -> None:
    """Make every turn of a loop and every macro call look at the clock."""
    blocks: list[jinja2.nodes.For | jinja2.nodes.Macro | jinja2.nodes.CallBlock] = [
        *tree.find_all(jinja2.nodes.For),
        *tree.find_all(jinja2.nodes.Macro),
        *tree.find_all(jinja2.nodes.CallBlock),
    ]
    for block in blocks:
        name = jinja2.nodes.Name(TICK, "load")
        tick = jinja2.nodes.ExprStmt(jinja2.nodes.Call(name, [], [], None, None))
        block.body.insert(0, tick.set_lineno(block.lineno))


def _deadline(seconds: float) -> Callable[[], None]:
    end = time.monotonic() + seconds

    def look_at_the_clock() -> None:
        if time.monotonic() > end:
            raise jinja2.TemplateError("The chat template takes too long to render these messages.")

    return look_at_the_clock


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return dt.datetime.now().astimezone().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without HTML escapes: the reader is a model, not a browser."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
