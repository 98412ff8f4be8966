"""What the tests of accounts share: an empty store and its keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.accounts.keys import Keyring
from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(tmp_path / "appliance.db", MIGRATIONS)
    yield database
    database.close()


@pytest.fixture
def keyring(database: Database) -> Keyring:
    return Keyring(database, b"p" * 32)
