"""Lines: appended with what they are about, bounded, printable; the store refuses everything else."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.audit.lines import Filter, list_lines
from appliance.audit.log import LONGEST_DETAILS, Actor, AuditLog, encoded, plain
from appliance.storage.database import Database
from appliance.storage.errors import StorageError
from appliance.storage.sqlite import sqlite
from tests.audit.logs import ANNA, KEY, verified

COPY = (
    "INSERT INTO audit SELECT {}, created_at, actor_id, actor, source, action, target, details, mac "
    "FROM audit WHERE id = 1"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=50,
)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody' WHERE id = 5",
        "UPDATE audit SET id = 500 WHERE id = 100",
        "DELETE FROM audit WHERE id = 100",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE id = 5",
        "REPLACE INTO audit SELECT * FROM audit WHERE id = 100",
        COPY.format("id + 500"),
        COPY.format("-1"),
    ],
)
def test_the_store_refuses_everything_but_the_next_line(database: Database, statement: str) -> None:
    with pytest.raises((StorageError, sqlite.IntegrityError)):
        database.write_sync(lambda db: db.execute(statement).rowcount)

    assert verified(database).lines == 100
    assert verified(database).broken is None


def test_a_line_of_a_write_that_fails_is_not_there(database: Database) -> None:
    def fail(db: Any) -> None:
        AuditLog(KEY).append(db, ANNA, "user.delete", "1")
        raise ValueError("too late")

    with pytest.raises(ValueError, match="too late"):
        database.write_sync(fail)
    assert verified(database).head.line == 100


def test_whatever_stands_in_a_line_it_is_printable_and_verifiable(database: Database) -> None:
    strange = "a\x00b\nc\x1b[2Jd\u202ee\ud800f\u2028"
    actor = Actor(None, strange, strange)
    details = {strange: strange, "deep": [[[[[[[[[[[[1]]]]]]]]]]]], "n": 1 << 80, "x": float("nan"), "s": {3}}
    database.write_sync(lambda db: AuditLog(KEY).append(db, actor, strange, strange, details))

    line = database.read_sync(lambda db: list_lines(db, Filter(limit=1)))[0]
    assert all(text.isprintable() for text in line.details)
    for text in (line.actor, line.source, line.action, line.target):
        assert text.isprintable()
        assert text.startswith("a\ufffdb")
    assert verified(database).broken is None


@given(st.dictionaries(st.text(), JSON))
def test_any_details_are_bounded_json(details: dict[str, Any]) -> None:
    text = encoded(details)

    assert len(text) <= LONGEST_DETAILS
    assert text.encode()
    assert text.startswith("{")


def test_long_texts_and_long_details_are_cut() -> None:
    class Kind(Enum):
        A = "a"

    assert plain("x" * 1000, 10) == "x" * 9 + "…"
    assert len(encoded({str(number): "y" * 900 for number in range(500)})) < 2 * LONGEST_DETAILS
    assert "cut" in encoded({str(number): "y" * 900 for number in range(500)})
    assert encoded({"kind": Kind.A, "many": list(range(10_000))}).count(",") < 300


def test_lines_are_found_by_actor_action_and_time(database: Database) -> None:
    log = AuditLog(KEY)
    bert = Actor(8, "bert@example.org", "10.0.0.8")
    database.write_sync(lambda db: log.append(db, bert, "userlist.read", "x"))
    database.write_sync(lambda db: log.append(db, bert, "user.delete", "7"))

    def found(**wanted: Any) -> list[int]:
        lines = database.read_sync(lambda db: list_lines(db, Filter(**{"limit": 500, **wanted})))
        return [line.id for line in lines]

    assert found() == list(range(102, 0, -1))
    assert found(actor="bert@example.org") == [102, 101]
    assert found(action="user.delete") == [102]
    assert found(action="user") == [102, *range(100, 0, -1)]
    assert found(limit=3, offset=1) == [101, 100, 99]
    assert found(before=3) == [2, 1]
    newest = database.read_sync(lambda db: list_lines(db, Filter(limit=1)))[0].created_at
    assert found(since=newest)[0] == 102
    assert found(since=newest + 1) == []
    assert found(until=0) == []
