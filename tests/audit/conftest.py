"""One log of a hundred lines for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.storage.database import Database
from tests.audit.logs import fill, opened


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(tmp_path / "appliance.db")
    fill(database, 100)
    yield database
    database.close()
