"""What the service and a worker say to each other over their socket pair.

A frame is its length as four bytes, most significant first, and a msgpack message of that many bytes.
File descriptors travel as SCM_RIGHTS beside the first byte of the frame that counts them.
"""

from __future__ import annotations

import msgspec

HEADER_BYTES = 4
MAX_FRAME_BYTES = 16 << 20
MAX_FDS = 8


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker may use: bytes of address space, bytes of any file it writes, open files.

    ``system_call_filter`` False lets it start on a kernel or processor without a filter, with a warning.
    """

    address_space: int = 4 << 30
    file_size: int = 0
    open_files: int = 128
    system_call_filter: bool = True


class Start(msgspec.Struct, frozen=True, kw_only=True, tag_field="says", tag="start"):
    """The first message to a worker: confine yourself, then open the kind with its arguments."""

    limits: Limits
    arguments: msgspec.Raw


class Call(msgspec.Struct, frozen=True, kw_only=True, tag_field="says", tag="call"):
    """A job. ``deadline_seconds`` is how long it may take, ``fds`` how many descriptors belong to it."""

    id: int
    arguments: msgspec.Raw
    deadline_seconds: float
    fds: int = 0


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="says", tag="cancel"):
    """Stop the job with this id, whether it runs or waits."""

    id: int


class Started(msgspec.Struct, frozen=True, kw_only=True, tag_field="says", tag="started"):
    """The worker is confined and its kind is open."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="says", tag="event"):
    """Something a running job has to say before its result."""

    id: int
    data: msgspec.Raw


class Result(msgspec.Struct, frozen=True, kw_only=True, tag_field="says", tag="result"):
    """The job is done."""

    id: int
    data: msgspec.Raw


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag_field="says", tag="failure"):
    """The job failed (or, with id 0, the start): an ApplianceError's fields."""

    id: int
    message: str
    status: int = 500
    type: str = "server_error"
    code: str | None = None
    param: str | None = None


ToWorker = Start | Call | Cancel
FromWorker = Started | Event | Result | Failure

_encoder = msgspec.msgpack.Encoder()


class FrameTooLargeError(Exception):
    """A frame announces more bytes than any message may have."""


def encode_frame(message: ToWorker | FromWorker) -> bytes:
    """Return the frame of ``message``. Raises FrameTooLargeError."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameTooLargeError(f"a message of {len(body)} bytes is larger than {MAX_FRAME_BYTES}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def encode_raw(value: object) -> msgspec.Raw:
    """Return ``value`` as msgpack, to put into a message."""
    return msgspec.Raw(_encoder.encode(value))


class FrameBuffer:
    """Collects received bytes and cuts them into message bodies."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._data += data

    def next(self) -> bytes | None:
        """Return the next whole body, or None when more bytes are needed. Raises FrameTooLargeError."""
        if len(self._data) < HEADER_BYTES:
            return None
        size = int.from_bytes(self._data[:HEADER_BYTES], "big")
        if size > MAX_FRAME_BYTES:
            raise FrameTooLargeError(f"a frame announces {size} bytes")
        end = HEADER_BYTES + size
        if len(self._data) < end:
            return None
        body = bytes(self._data[HEADER_BYTES:end])
        del self._data[:end]
        return body
