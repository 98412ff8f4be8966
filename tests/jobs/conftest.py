"""A real store for the jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.storage.database import Database
from appliance.storage.migrations import MIGRATIONS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "appliance.db", MIGRATIONS)
    yield opened
    opened.close()
