"""Checks of what reads and writes text: tokenizers, constraints, templates, time zones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import jinja2
import jinja2.sandbox
import numpy as np

from appliance.engines.generation.constraints.compiler import ConstraintCompiler, JsonSchema
from appliance.gateway.usage.windows import zone_of
from appliance.smoke.registry import Ground, SmokeError

# One token a character: enough for JSON.
_CHARACTERS = [chr(code) for code in range(32, 127)]
_END = len(_CHARACTERS)
_LOWEST = np.finfo(np.float32).min


def _tokenizer_json() -> str:
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": _END,
                    "content": "<end>",
                    "special": True,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
            ],
            "pre_tokenizer": {"type": "ByteLevel", **byte_level},
            "decoder": {"type": "ByteLevel", **byte_level},
            "model": {
                "type": "BPE",
                "merges": [],
                "vocab": {
                    ("Ġ" if character == " " else character): index
                    for index, character in enumerate(_CHARACTERS)
                },
            },
        }
    )


def tokenizers(_: Ground) -> str:
    """Turn a text into tokens and back."""
    from tokenizers import Tokenizer, __version__

    tokenizer = Tokenizer.from_str(_tokenizer_json())
    text = "The ferry leaves at seven."
    ids = tokenizer.encode(text).ids
    if len(ids) != len(text) or tokenizer.decode(ids) != text:
        raise SmokeError("a text does not come back from its tokens")
    return f"tokenizers {__version__}"


def constraints(ground: Ground) -> str:
    """Compile a schema, and see that it lets the first token of an answer be a brace only."""
    path = ground.work / "tokenizer.json"
    path.write_text(_tokenizer_json(), "utf-8")
    compiler = ConstraintCompiler(path, [_END], _END + 1)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    logits = np.zeros(_END + 1, np.float32)
    compiler.compile(JsonSchema(schema)).start().mask(logits)
    allowed = [_CHARACTERS[index] for index in np.flatnonzero(logits > _LOWEST)]
    if allowed != ["{"]:
        raise SmokeError(f"a JSON object may begin with {allowed}")
    return "a schema masks tokens"


def templates(_: Ground) -> str:
    """Render a template in Jinja's sandbox, which refuses to reach inside Python."""
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment()
    if sandbox.from_string("{{ who | upper }}").render(who="box") != "BOX":
        raise SmokeError("a template does not render")
    try:
        sandbox.from_string("{{ ''.__class__.__mro__ }}").render()
    except jinja2.exceptions.SecurityError:
        return f"Jinja {jinja2.__version__}"
    raise SmokeError("the sandbox lets a template reach inside Python")


def time_zones(_: Ground) -> str:
    """Look up a zone with summer time, out of the tree's own data."""
    zone = zone_of("Europe/Berlin")
    summer = datetime(2026, 7, 1, tzinfo=UTC).astimezone(zone)
    if zone is None or summer.utcoffset() != timedelta(hours=2):
        raise SmokeError("Berlin has no summer time here")
    return "tzdata's own"
