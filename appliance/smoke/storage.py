"""Checks of what keeps data: SQLite with its extensions, the store and its migrations, compression."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import msgspec
import sqlite_vec
import zstandard

from appliance.config import Settings
from appliance.control.stores import open_stores
from appliance.frozen import is_frozen
from appliance.smoke.registry import Ground, SkippedError, SmokeError
from appliance.storage.sqlite import connect, sqlite

DIMENSIONS = 8


def store(ground: Ground) -> str:
    """Open the store, which brings it to this program's schema, and have SQLite look at all of it."""
    directory = ground.data_dir or ground.work / "data"
    with open_stores(msgspec.structs.replace(Settings(), data_dir=directory)) as stores:
        version, found = stores.database.read_sync(
            lambda db: (
                db.execute("PRAGMA user_version").fetchone()[0],
                db.execute("PRAGMA quick_check").fetchone()[0],
            )
        )
    if found != "ok":
        raise SmokeError(f"the store is damaged: {found}")
    return f"schema {version}, {'the given copy' if ground.data_dir else 'a new one'}"


def vectors(ground: Ground) -> str:
    """Write vectors into a table of vec0 and find the nearest."""
    connection = connect(ground.work / "vectors.db")
    try:
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        connection.enable_load_extension(False)
        connection.execute(f"CREATE VIRTUAL TABLE points USING vec0(place float[{DIMENSIONS}])")
        for row in range(DIMENSIONS):
            place = struct.pack(f"{DIMENSIONS}f", *(float(row == axis) for axis in range(DIMENSIONS)))
            connection.execute("INSERT INTO points(rowid, place) VALUES (?, ?)", (row + 1, place))
        nearest = connection.execute(
            "SELECT rowid FROM points WHERE place MATCH ? ORDER BY distance LIMIT 1", (place,)
        ).fetchone()[0]
        version: str = connection.execute("SELECT vec_version()").fetchone()[0]
    finally:
        connection.close()
    if nearest != DIMENSIONS:
        raise SmokeError(f"the nearest vector is {DIMENSIONS}, vec0 says {nearest}")
    return f"sqlite-vec {version}"


def full_text(ground: Ground) -> str:
    """Find a word by FTS5."""
    connection = connect(ground.work / "text.db")
    try:
        connection.execute("CREATE VIRTUAL TABLE pages USING fts5(text)")
        connection.execute("INSERT INTO pages VALUES ('the ferry leaves the harbour')")
        found = connection.execute("SELECT count(*) FROM pages WHERE pages MATCH 'harbour'").fetchone()[0]
    finally:
        connection.close()
    if found != 1:
        raise SmokeError("FTS5 does not find a word that is there")
    return f"SQLite {sqlite.sqlite_version}"


def one_sqlite(_: Ground) -> str:
    """See that one SQLite library is loaded: two in a process break each other's locks."""
    if not is_frozen():
        raise SkippedError("the interpreter of a clone has a SQLite of its own besides, which nothing opens")
    lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    loaded = {line.split()[-1] for line in lines if "sqlite3" in line.rpartition("/")[2]}
    if len(loaded) != 1 or "_sqlite3" in sys.modules:
        raise SmokeError(f"these are loaded: {', '.join(sorted(loaded)) or 'none'}")
    return Path(loaded.pop()).name


def compression(_: Ground) -> str:
    """Compress and restore."""
    data = bytes(range(256)) * 1024
    packed = zstandard.ZstdCompressor(level=3).compress(data)
    if zstandard.ZstdDecompressor().decompress(packed) != data:
        raise SmokeError("what was compressed does not come back")
    return f"libzstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"
