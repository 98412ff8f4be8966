"""Which versions of the C library an ELF file needs, read from its table of needed versions (64 bit, little-endian)."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

MAGIC = b"\x7fELF\x02\x01"
SHT_GNU_VERNEED = 0x6FFFFFFE
_GLIBC = re.compile(rb"^GLIBC_(\d+(?:\.\d+)+)$")


class _Section(NamedTuple):
    kind: int
    offset: int
    size: int
    link: int
    info: int


def is_elf(path: Path) -> bool:
    """Return whether ``path`` begins as an ELF file of the kind that this module reads."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def needed_glibc(path: Path) -> set[tuple[int, ...]]:
    """Return the glibc versions that ``path`` needs symbols of, such as ``(2, 17)``."""
    data = path.read_bytes()
    sections = _sections(data)
    found: set[tuple[int, ...]] = set()
    for section in sections:
        if section.kind == SHT_GNU_VERNEED:
            strings = sections[section.link]
            for name in _names(data, section, strings.offset):
                match = _GLIBC.match(name)
                if match:
                    found.add(tuple(int(part) for part in match[1].split(b".")))
    return found


def has_section(path: Path, name: bytes) -> bool:
    """Return whether the file has a section of that name, such as ``.debug_info``."""
    data = path.read_bytes()
    (strings_index,) = struct.unpack_from("<H", data, 62)
    sections = _sections(data)
    if strings_index >= len(sections):
        return False
    strings = sections[strings_index]
    return b"\0" + name + b"\0" in data[strings.offset : strings.offset + strings.size]


def _sections(data: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = []
    for index in range(count):
        _, kind, _, _, offset, length, link, info = struct.unpack_from(
            "<IIQQQQII", data, table + index * size
        )
        sections.append(_Section(kind, offset, length, link, info))
    return sections


def _names(data: bytes, section: _Section, strings: int) -> list[bytes]:
    names = []
    entry = section.offset
    for _ in range(section.info):  # Elf64_Verneed, then its Elf64_Vernaux
        _, count, _, first, following = struct.unpack_from("<HHIII", data, entry)
        version = entry + first
        for _ in range(count):
            _, _, _, name, next_version = struct.unpack_from("<IHHII", data, version)
            start = strings + name
            names.append(data[start : data.index(b"\0", start)])
            version += next_version
        entry += following
    return names
