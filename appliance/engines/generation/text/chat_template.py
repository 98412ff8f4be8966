"""The pack's chat template: Jinja, in a sandbox, set up as Hugging Face's transformers renders it."""

from __future__ import annotations

import datetime as dt
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from appliance.engines.errors import InputRefusedError
from appliance.engines.generation.text.template_sandbox import Sandbox
from appliance.packs.errors import PackError

MAX_TEMPLATE_CHARACTERS = 1 << 18
# A template renders a conversation of the whole context in milliseconds; more is a runaway loop.
MAX_SECONDS = 5.0

# What a template raises over messages that it was not written for, such as a content that is no string.
_RENDER_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A compiled chat template. ``variables`` are further names it may use, such as ``bos_token``."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        """Compile ``source``. Raises PackError when it is too long or not a Jinja template."""
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise PackError(f"The chat template is longer than {MAX_TEMPLATE_CHARACTERS} characters.")
        environment = Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(environment.guard(environment.parse(source)))
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise PackError(f"The chat template is not valid: {error}") from error
        self._environment = environment
        self._variables = variables

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[Any] | None = None,
        variables: dict[str, Any] | None = None,
        add_generation_prompt: bool = True,
        max_characters: int,
    ) -> str:
        """Return the prompt text of a conversation; ``variables`` are further names for the template.

        Raises InputRefusedError with the template's own message when the template refuses the
        messages, when the text grows past ``max_characters``, and when rendering takes more than
        MAX_SECONDS or much more memory than such a text.
        """
        pieces: list[str] = []
        room = max_characters
        context = {
            **(variables or {}),
            **self._variables,
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with self._environment.bounded(characters=max_characters, seconds=MAX_SECONDS):
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


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return dt.datetime.now().astimezone().strftime(layout)
