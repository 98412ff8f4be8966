"""``sqlite3.dbapi2`` in the frozen tree; see the package."""

from pysqlite3.dbapi2 import *  # noqa: F403 - the whole module under another name
