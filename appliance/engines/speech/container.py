"""Tell what an audio file is by its first bytes, before any decoder sees it."""

from __future__ import annotations

from typing import Literal

Container = Literal["wav", "flac", "mp3", "ogg", "aiff", "au", "caf", "mp4", "matroska", "aac", "amr", "asf"]

HEAD_BYTES = 4096

# What libsndfile decodes; the rest needs a decoder that may be installed beside it.
SNDFILE: frozenset[Container] = frozenset({"wav", "flac", "mp3", "ogg", "aiff", "au", "caf"})

NAMES: dict[Container, str] = {
    "wav": "WAV",
    "flac": "FLAC",
    "mp3": "MP3",
    "ogg": "Ogg",
    "aiff": "AIFF",
    "au": "AU",
    "caf": "CAF",
    "mp4": "MP4/M4A",
    "matroska": "WebM/Matroska",
    "aac": "AAC",
    "amr": "AMR",
    "asf": "WMA",
}

_ID3_HEADER = 10


def sniff(head: bytes) -> Container | None:
    """Return the container that ``head``, the file's first bytes, begins; None when it is none of ours."""
    if head[:3] == b"ID3":
        return _after_id3(head)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "mp4"
    prefixes: tuple[tuple[bytes, Container], ...] = (
        (b"fLaC", "flac"),
        (b"OggS", "ogg"),
        (b".snd", "au"),
        (b"caff", "caf"),
        (b"\x1aE\xdf\xa3", "matroska"),
        (b"#!AMR", "amr"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    )
    for prefix, container in prefixes:
        if head.startswith(prefix):
            return container
    return _frame_sync(head)


def _after_id3(head: bytes) -> Container | None:
    """An ID3 tag stands before MP3 mostly, and sometimes before FLAC or AAC."""
    if len(head) < _ID3_HEADER:
        return None
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    rest = head[_ID3_HEADER + size :]
    # A tag with a picture is longer than what we look at: MP3 then, and the decoder will say.
    return (sniff(rest) if rest else "mp3") if rest[:3] != b"ID3" else "mp3"


def _frame_sync(head: bytes) -> Container | None:
    """MPEG audio without a tag: eleven set bits, then layer and version (ISO/IEC 11172-3, 13818-7)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    layer, version = head[1] >> 1 & 3, head[1] >> 3 & 3
    if layer == 0:
        return "aac" if head[1] & 0xF6 == 0xF0 else None
    # 1 is a reserved version; 15 and 3 are reserved bit and sampling rates.
    return None if version == 1 or head[2] >> 4 == 15 or head[2] >> 2 & 3 == 3 else "mp3"
