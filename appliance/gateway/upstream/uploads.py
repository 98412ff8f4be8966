"""Uploads on their way to an upstream server: read from the spool piece by piece as they are sent."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable

from appliance.storage.spool import Upload

# A multiple of 3: then the pieces' base64 joins to that of the whole.
PIECE_BYTES = 3 * (64 << 10)

# How the usual audio files begin; (offset, bytes) -> the ending that servers know them by.
_SIGNATURES = (
    (8, b"WAVE", "wav"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"\xff\xf3", "mp3"),
    (0, b"\xff\xf2", "mp3"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (4, b"ftyp", "m4a"),
    (0, b"\x1a\x45\xdf\xa3", "webm"),
)


def audio_ending(upload: Upload) -> str:
    """Return the file name's ending for an upload of audio; some servers go by it."""
    start = os.pread(upload.descriptor(), 16, 0)
    return next(
        (ending for offset, mark, ending in _SIGNATURES if start[offset:].startswith(mark)),
        "wav",
    )


def multipart(
    fields: Iterable[tuple[str, str]], file_name: str, upload: Upload
) -> tuple[AsyncIterable[bytes], dict[str, str]]:
    """Return the body and headers of a form with text fields and ``upload`` as its ``file``."""
    boundary = secrets.token_hex(16)
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields
    )
    head += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    before, after = head.encode("utf-8", "replace"), f"\r\n--{boundary}--\r\n".encode()
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(before) + upload.size + len(after)),
    }
    return _Around(before, upload, _pieces, after), headers


def json_around(before: bytes, upload: Upload, after: bytes) -> tuple[AsyncIterable[bytes], dict[str, str]]:
    """Return the body and headers of a JSON text with ``upload`` as base64 in its middle."""
    size = len(before) + 4 * (-(-upload.size // 3)) + len(after)
    headers = {"Content-Type": "application/json", "Content-Length": str(size)}
    return _Around(before, upload, _base64, after), headers


class _Around:
    """A body with an upload in its middle, as often as it is sent."""

    def __init__(
        self, before: bytes, upload: Upload, read: Callable[[Upload], AsyncIterator[bytes]], after: bytes
    ) -> None:
        self._before = before
        self._upload = upload
        self._read = read
        self._after = after

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._before
        async for piece in self._read(self._upload):
            yield piece
        yield self._after


async def _base64(upload: Upload) -> AsyncIterator[bytes]:
    async for piece in _pieces(upload):
        yield base64.b64encode(piece)


async def _pieces(upload: Upload) -> AsyncIterator[bytes]:
    descriptor = upload.descriptor()
    offset = 0
    while offset < upload.size:
        wanted = min(PIECE_BYTES, upload.size - offset)
        piece = await asyncio.to_thread(_exactly, descriptor, wanted, offset)
        offset += len(piece)
        yield piece


def _exactly(descriptor: int, count: int, offset: int) -> bytes:
    """Return ``count`` bytes at a place of a file: a system call may give fewer."""
    pieces: list[bytes] = []
    while count:
        piece = os.pread(descriptor, count, offset)
        if not piece:
            raise OSError("an upload is shorter than it was")
        pieces.append(piece)
        count -= len(piece)
        offset += len(piece)
    return b"".join(pieces)
