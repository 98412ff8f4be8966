"""Reads one Zstandard frame (RFC 8878) of unknown origin, in bounded memory, to its very end."""

from __future__ import annotations

from typing import Protocol

import zstandard

from appliance.packs.errors import PackError

# RFC 8878 §3.1.1.1.2 asks decoders for at least 8 MiB; ``zstd -19`` needs no more.
MAX_WINDOW = 8 << 20
# A block of four bytes may stand for 128 KiB, so this much input gives at most 32 MiB at once.
INPUT_BYTES = 1024

_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_HEADER = 18


class Readable(Protocol):
    """What a frame is read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        ...


class FrameReader:
    """The decompressed contents of ``file``, which must hold exactly one frame with a checksum.

    ``manifest`` is what the file that lists the others is called, for errors.
    """

    manifest = "pack.toml"

    def __init__(self, file: Readable) -> None:
        """Check the frame's header. Raises PackError when it is not one, or asks for too much memory."""
        header = file.read(_MAX_HEADER)
        if not header.startswith(_MAGIC):
            raise PackError("not a pack or bundle: the file is not compressed with Zstandard")
        try:
            parameters = zstandard.get_frame_parameters(header)
        except zstandard.ZstdError as error:
            raise PackError("the archive is damaged or cut short") from error
        if parameters.window_size > MAX_WINDOW:
            raise PackError(
                f"the archive needs a window of {parameters.window_size >> 20} MiB to decompress; "
                f"at most {MAX_WINDOW >> 20} MiB are allowed (zstd -19 or lower, without --long)"
            )
        if not parameters.has_checksum or parameters.dict_id:
            raise PackError("the archive has no checksum, or needs a dictionary (zstd --check)")
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
        self._buffer = bytearray()
        self._feed(header)

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes. Raises PackError when the frame ends before or is damaged."""
        while len(self._buffer) < size:
            if self._decompressor.eof:
                raise PackError("the archive is cut short: a file or the end mark is missing")
            self._feed_more()
        piece = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return piece

    def read_rest(self, limit: int) -> bytes:
        """Return everything up to the frame's end, whose checksum is right and which ends the file.

        Raises PackError when there is more than ``limit`` bytes, damage, or anything behind the frame.
        """
        while not self._decompressor.eof:
            if len(self._buffer) > limit:
                break
            self._feed_more()
        if len(self._buffer) > limit:
            raise PackError(f"the archive holds more than its {self.manifest} lists")
        if self._decompressor.unused_data or self._file.read(1):
            raise PackError("the archive has something behind its end")
        return self.read(len(self._buffer))

    def _feed_more(self) -> None:
        data = self._file.read(INPUT_BYTES)
        if not data:
            raise PackError("the archive is cut short")
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        try:
            self._buffer += self._decompressor.decompress(data)
        except zstandard.ZstdError as error:
            raise PackError("the archive is damaged: it does not decompress") from error
