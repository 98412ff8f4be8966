"""``sqlite3`` in the frozen tree: pysqlite3 under the standard library's name.

sqlite-utils imports it for annotations. Two SQLite libraries in one process break each other's POSIX
locks, so the tree holds one.
"""

from pysqlite3 import *  # noqa: F403 - the whole module under another name
from pysqlite3 import dbapi2

__all__ = ["dbapi2"]
