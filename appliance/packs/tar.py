"""The part of the tar format (POSIX.1-1988 ustar) that archives of ours may use: plain files, and links if asked.

Our own reader, because the standard one follows every extension (PAX records, GNU long names and
sparse maps, links) before a caller can refuse it, and its faults are those of whichever Python the
box has. Stock tar writes what is read here with ``--format=ustar``.
"""

from __future__ import annotations

import msgspec

from appliance.packs.errors import PackError

BLOCK = 512
# Two zero blocks end an archive; tar programs fill up to a record of 20 blocks.
END = bytes(2 * BLOCK)
MAX_END = 2 * BLOCK + 20 * BLOCK

_MAGIC = b"ustar\x0000"
_MAX_OCTAL_SIZE = 8**11 - 1
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory entry",
    b"6": "a named pipe",
    b"K": "a GNU long link",
    b"L": "a GNU long name",
    b"S": "a sparse file",
    b"g": "a PAX global header",
    b"x": "a PAX header",
}


class Member(msgspec.Struct, frozen=True):
    """The header of one file: its path and size in bytes; ``link`` is where a symbolic link leads."""

    path: str
    size: int
    mode: int = 0o644
    link: str | None = None


def padding(size: int) -> int:
    """Return how many zero bytes follow the contents of a file of ``size`` bytes."""
    return -size % BLOCK


def write_header(member: Member) -> bytes:
    """Return the 512-byte header of a file: owner 0, time 0, so that equal packs give equal bytes.

    Raises PackError when the path does not fit into the format.
    """
    prefix, name = _split(member.path)
    octal = member.size <= _MAX_OCTAL_SIZE  # beyond 8 GiB: GNU's binary form
    size = b"%011o\x00" % member.size if octal else b"\x80" + member.size.to_bytes(11, "big")
    fields = (
        name.ljust(100, b"\x00"),
        b"%07o\x00" % member.mode,
        b"0000000\x00",
        b"0000000\x00",
        size,
        b"00000000000\x00",
        b" " * 8,
        b"0" if member.link is None else b"2",
        _ascii(member.link or "").ljust(100, b"\x00"),
        _MAGIC,
        bytes(32 + 32 + 8 + 8),
        prefix.ljust(155, b"\x00"),
        bytes(12),
    )
    header = b"".join(fields)
    return header[:148] + b"%06o\x00 " % sum(header) + header[156:]


def read_header(block: bytes, *, links: bool = False) -> Member | None:
    """Read a header block; None is the zero block that ends an archive.

    Raises PackError for anything but a plain file (or, with ``links``, a symbolic link) in ustar format.
    """
    if not any(block):
        return None
    if _octal(block[148:156]) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        raise PackError("the archive is damaged: a header has a wrong checksum")
    path = _text(block[:100])
    kind = block[156:157]
    link = _text(block[157:257]) if links and kind == b"2" else None
    if kind not in (b"0", b"\x00") and link is None:
        raise PackError(f"the archive holds {_KINDS.get(kind, 'an unknown kind of entry')} ({path!r:.120})")
    if block[257:265] != _MAGIC:
        raise PackError("the archive is not in ustar format (tar --format=ustar)")
    prefix = _text(block[345:500])
    size = block[124:136]
    length = int.from_bytes(size[1:], "big") if size[0] == 0x80 else _octal(size)
    mode = _octal(block[100:108])
    return Member(path=f"{prefix}/{path}" if prefix else path, size=length, mode=mode, link=link)


def _split(path: str) -> tuple[bytes, bytes]:
    encoded = _ascii(path)
    if len(encoded) <= 100:
        return b"", encoded
    for position in range(min(155, len(encoded) - 1), 0, -1):
        if encoded[position : position + 1] == b"/" and len(encoded) - position - 1 <= 100:
            return encoded[:position], encoded[position + 1 :]
    raise PackError(f"the path {path!r} is too long for an archive")


def _ascii(text: str) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise PackError(f"the name {text!r} is not ASCII") from error


def _text(field: bytes) -> str:
    try:
        return field.split(b"\x00", 1)[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise PackError("the archive holds a file whose name is not ASCII") from error


def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\x00 ").lstrip(b" ")
    if not digits or digits.strip(b"01234567"):
        raise PackError("the archive is damaged: a header has a malformed number")
    return int(digits, 8)
