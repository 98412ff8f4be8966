"""The chunks of a streamed answer as bytes: what is the same in all of them is encoded once."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.api.openai.generation.fields import StreamOptions
from appliance.api.openai.usage import Meter

encode = msgspec.json.Encoder().encode


class ChunkWriter:
    """Writes the events of one stream and counts the tokens in them."""

    def __init__(self, head: dict[str, Any], meter: Meter, options: StreamOptions | None) -> None:
        """``head`` is what every chunk begins with, ``meter`` what counts the tokens."""
        encoded = encode(head)
        self._start = b"data: " + encoded[:-1] + b',"choices":['
        self._meter = meter
        self._with_usage = options is not None and options.usage
        self._running_usage = options is not None and options.running_usage
        # OpenAI's clients expect the key in every chunk, null until the last.
        self._end = b'],"usage":null}\n\n' if self._with_usage else b"]}\n\n"

    def count(self, tokens: int) -> None:
        """Count tokens that the next chunks hold."""
        self._meter.first_token()
        self._meter.count(tokens)

    def chunk(self, *choice: bytes) -> bytes:
        """Return the event of one choice, whose JSON comes in pieces."""
        if self._running_usage:
            return b"".join((self._start, *choice, b'],"usage":', self._usage(), b"}\n\n"))
        return b"".join((self._start, *choice, self._end))

    def last(self) -> bytes:
        """Return the event with the usage of the whole request, or nothing when it was not asked for."""
        if not self._with_usage:
            return b""
        return b"".join((self._start, b'],"usage":', self._usage(), b"}\n\n"))

    def _usage(self) -> bytes:
        return encode(self._meter.usage())
